"""Where a line's samples go: a point lands on its pixel whatever the oversampling, the echo and the limits are."""

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.physics.fourier import to_image

from support.hand_made import (
    COILS,
    OVERSAMPLED,
    assert_point,
    header,
    line,
    only,
    point_scan,
    volume_header,
    volume_scan,
)


@pytest.mark.parametrize(
    ("options", "oversampling"),
    [
        ({}, 1),
        (OVERSAMPLED, 2),
        (OVERSAMPLED, 1),  # the header says so, the samples do not
        ({}, 2),  # the samples are, the header does not say so
        ({"x": 52}, 2),  # matrix with, field of view without the oversampling
        ({"x": 52}, 1),
    ],
)
@pytest.mark.parametrize(("y", "x"), [(7, 9), (-11, -4)])
def test_a_point_lands_on_its_pixel(options, oversampling, y, x):
    result = only(slices(point_scan(y, x, oversampling=oversampling), header(**options)))
    assert result.kspace.shape == (3, 33, 26) and result.kspace.dtype == torch.complex64
    assert bool((result.mask == 1).all()) and result.mask.dtype == torch.float32
    assert_point(result.kspace, y, x)


def test_odd_columns_and_other_oversampling():
    # 1.4 times 25 columns
    options = {"x": 35, "fov_x": 175.0, "recon_x": 25, "recon_fov_x": 125.0}
    k = np.arange(-17, 18)
    lines = [
        line(n, COILS[:, None] * np.exp(-2j * np.pi * ((n - 16) * 5 / 33 + k * -8 / 35)), center=17) for n in range(33)
    ]
    result = only(slices(lines, header(**options)))
    assert result.kspace.shape == (3, 33, 25)
    assert_point(result.kspace, 5, -8)


def test_unset_center_sample_is_the_middle():
    assert_point(only(slices(point_scan(3, 4, center_sample=0), header())).kspace, 3, 4)


def test_discarded_samples_are_no_data():
    lines = point_scan(3, 4, oversampling=2)
    padded = [
        line(
            a.idx.kspace_encode_step_1, np.pad(a.data, ((0, 0), (5, 3)), constant_values=1e6), center=31, pre=5, post=3
        )
        for a in lines
    ]
    assert_point(only(slices(padded, header(**OVERSAMPLED))).kspace, 3, 4)


@pytest.mark.parametrize("oversampling", [1, 2])
def test_asymmetric_echo(oversampling):
    # 6 of 26 columns are missing at the start
    missing = 6
    low = -13 * oversampling + missing * oversampling
    options = OVERSAMPLED if oversampling == 2 else {}
    lines = point_scan(4, 3, oversampling=oversampling, low=low, center_sample=-low)
    result = only(slices(lines, header(**options)))
    held = result.mask[0]
    margin = 2 if oversampling == 2 else 0
    assert held.tolist() == [0.0] * (missing + margin) + [1.0] * (26 - missing - margin)
    assert bool((result.kspace[:, result.mask == 0] == 0).all())
    truth = only(slices(point_scan(4, 3, oversampling=oversampling), header(**options))).kspace
    error = (result.kspace - truth)[:, :, held > 0].abs().max() / truth.abs().max()
    assert error < (0.15 if oversampling == 2 else 1e-5)
    peak = to_image(result.kspace)[0].abs().argmax()
    assert divmod(int(peak), 26) == (16 + 4, 13 + 3)


def peaked(lines, center):
    """The lines of a soft object: most energy lies around the k-space centre."""
    for one in lines:
        distance = np.arange(one.number_of_samples) - center
        one.data[:] *= np.exp(-((distance / 6) ** 2)) + 0.01
    return lines


@pytest.mark.parametrize("missing", [0, 20])
def test_a_center_sample_in_the_middle_of_an_asymmetric_echo_is_put_right(missing):
    """As converters write it that know no asymmetric echo."""
    low, head = missing - 26, header(**OVERSAMPLED)
    right = peaked(point_scan(4, 3, oversampling=2, low=low, center_sample=-low), -low)
    wrong = peaked(point_scan(4, 3, oversampling=2, low=low, center_sample=(26 - low) // 2), -low)
    one, other = only(slices(right, head)), only(slices(wrong, head))
    assert torch.equal(one.mask, other.mask) and torch.equal(one.kspace, other.kspace)
    assert not one.remarks and len(other.remarks) == (missing > 0)
    assert all("center_sample 16 is not the k-space centre: sample 6 is taken" in remark for remark in other.remarks)
    cut = peaked(point_scan(4, 3, oversampling=2, low=low, center_sample=0), -low)
    told = only(slices(cut, header(x=26 - low, fov_x=260.0, recon_fov_x=260.0))).remarks
    assert any("matrixSize.x is not that of a full readout" in remark for remark in told) == (missing > 0)


def test_the_echoes_of_a_volume_are_put_right_too():
    places = [(partition, number) for partition in range(13) for number in range(33)]
    found = []
    for center in (6, 16):
        lines = volume_scan(2, 4, 3, places, oversampling=2, low=-6, center_sample=center)
        found.append(only(slices(peaked(lines, 6), volume_header(**OVERSAMPLED))))
    assert torch.equal(found[0].mask, found[1].mask) and torch.equal(found[0].kspace, found[1].kspace)


def test_an_echo_filled_up_with_zeros_is_asymmetric_all_the_same():
    lines = point_scan(4, 3, low=-8, center_sample=8)
    filled = [line(n, np.pad(a.data, ((0, 0), (5, 0)))) for n, a in enumerate(lines)]
    one, other = only(slices(lines, header())), only(slices(filled, header()))
    assert one.mask[0].tolist() == [0.0] * 5 + [1.0] * 21
    assert torch.equal(one.mask, other.mask) and torch.equal(one.kspace, other.kspace)


def test_partial_fourier_leaves_the_missing_rows_empty():
    # 24 of 33 rows, numbered from 0; the centre is number 7, which is row 16
    head = header(maximum=23, center=7)
    result = only(slices(point_scan(-6, 5, numbers=range(24), center=7), head))
    assert (result.mask[:, 0] == 1).nonzero().squeeze(1).tolist() == list(range(9, 33))
    truth = only(slices(point_scan(-6, 5), header())).kspace
    torch.testing.assert_close(result.kspace, truth * result.mask, rtol=0, atol=1e-4)
    assert (result.n_lines_got, result.n_lines_needed) == (24, 24)
    assert result.calibration.shape == (3, 15, 26)  # 7 rows on either side of the centre
    torch.testing.assert_close(result.calibration, result.kspace[:, 9:24])


INTERPOLATED = {"x": 104, "fov_x": 260.0, "recon_x": 52}  # images of twice the columns that are acquired


@pytest.mark.parametrize("half", [20, 24])
def test_oversampled_lines_shorter_than_the_interpolated_image_keep_their_field_of_view(half):
    """As where the header's matrix is the image's, times the oversampling."""
    lines = point_scan(4, 9, cols=52, oversampling=2, low=-half, high=half, center_sample=half)
    result = only(slices(lines, header(**INTERPOLATED)))
    assert result.kspace.shape == (3, 33, 52) and result.remarks == ()
    assert divmod(int(to_image(result.kspace)[0].abs().argmax()), 52) == (16 + 4, 26 + 9)
    wide = point_scan(4, 22, cols=52, low=-half, high=half, center_sample=half)  # without oversampling
    result = only(slices(wide, header(**INTERPOLATED)))
    assert divmod(int(to_image(result.kspace)[0].abs().argmax()), 52) == (16 + 4, 26 + 22)


@pytest.mark.parametrize(("x", "squeezed"), [(9, True), (22, False)])
def test_an_image_that_may_be_squeezed_is_told(x, squeezed):
    """Lines of as many samples as images have columns are freed of oversampling, or acquired coarser."""
    result = only(slices(point_scan(4, x, cols=52), header(**INTERPOLATED)))
    assert_point(result.kspace, 4, x)
    assert any("if the image is squeezed" in remark for remark in result.remarks) == squeezed
    lines = point_scan(4, x, cols=52, oversampling=2, low=-26, high=26, center_sample=26)
    result = only(slices(lines, header(**{**INTERPOLATED, "x": 52})))
    assert result.kspace.shape == (3, 33, 26) and result.remarks == ()


@pytest.mark.parametrize(("x", "squeezed"), [(5, True), (16, False)])
def test_oversampling_that_the_header_does_not_tell_at_all_is_told(x, squeezed):
    """Its encoded field of view is the images', whose matrix is interpolated to another size than half of it."""
    result = only(slices(point_scan(4, x, cols=52), header(x=52, fov_x=130.0, recon_x=60, recon_fov_x=130.0)))
    assert any("encodedSpace.fieldOfView_mm.x=260" in remark for remark in result.remarks) == squeezed


def test_lines_freed_of_an_oversampling_whose_field_of_view_the_header_kept_are_refused():
    """Of half the distance between columns that lines have: the head would be twice as wide and cut off."""
    told = {"x": 26, "fov_x": 260.0, "recon_x": 26, "recon_fov_x": 130.0}
    with pytest.raises(BadInputError, match=r"encodedSpace.fieldOfView_mm.x=130"):
        list(slices(point_scan(4, 9), header(**told)))
    half = only(slices(point_scan(4, 5, oversampling=2, low=-13, high=13, center_sample=13), header(**told)))
    assert half.kspace.shape == (3, 33, 13)


def test_samples_that_fit_no_grid():
    with pytest.raises(BadInputError, match="60 samples, centre 30"):
        list(slices([line(n, np.ones((3, 60))) for n in range(33)], header()))


@pytest.mark.parametrize("n_samples", [32, 39])
def test_an_oversampling_that_no_header_tells_is_refused(n_samples):
    """Of 1.2 and 1.5: taken for one of 2, they would make the head too wide."""
    half = n_samples // 2
    lines = point_scan(3, 4, oversampling=2, low=-half, high=n_samples - half, center_sample=half)
    with pytest.raises(BadInputError, match=f"{n_samples} samples, centre {half}, which fits neither"):
        list(slices(lines, header()))
    told = header(x=n_samples, fov_x=5.0 * n_samples)
    assert only(slices(lines, told)).kspace.shape == (3, 33, 26)


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize(("options", "oversampling"), [({}, 1), (OVERSAMPLED, 2), (OVERSAMPLED, 1), ({}, 2)])
def test_a_full_readout_whose_centre_is_one_sample_off(options, oversampling, off):
    lines = point_scan(3, 4, oversampling=oversampling, center_sample=13 * oversampling + off)
    result = only(slices(lines, header(**options)))
    assert bool((result.mask == 1).all())
    assert_point(result.kspace, 3, 4)
    with pytest.raises(BadInputError, match="which fits neither"):
        far = point_scan(3, 4, oversampling=2, center_sample=26 + 2 * off)
        list(slices(far, header(**options)))
