"""Where voxels lie in the patient: the conversion, and headers that do not tell."""

from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.geometry import orientation_letters, plane_of_mrd, slice_spacing
from dpmrecon.physics.fourier import to_image


def head(position=(3.0, -20.0, 41.5), fov=(252.0, 230.0, 4.0), angle=0.4) -> ismrmrd.ImageHeader:
    header = ismrmrd.ImageHeader()
    header.position[:] = position
    header.read_dir[:] = (np.cos(angle), np.sin(angle), 0)
    header.phase_dir[:] = (-np.sin(angle) * 0.8, np.cos(angle) * 0.8, 0.6)
    header.field_of_view[:] = fov
    return header


@pytest.mark.parametrize("shape", [(64, 90), (75, 90), (64, 91), (75, 91)])
def test_the_position_is_voxel_n_over_2(shape):
    rows, columns = shape
    plane = plane_of_mrd(head(), shape)
    assert plane.point(rows // 2, columns // 2) == pytest.approx((3.0, -20.0, 41.5), abs=1e-6)
    assert plane.spacing_mm == pytest.approx((230 / rows, 252 / columns))
    assert plane.point(rows // 2, columns // 2 + 1) - plane.point(rows // 2, columns // 2) == pytest.approx(
        252 / columns * np.array([np.cos(0.4), np.sin(0.4), 0]), abs=1e-5
    )
    assert plane.voxel(plane.point(7, 11)) == pytest.approx((7, 11, 0), abs=1e-9)
    # hosts that subtract half of the field of view: the same for even sizes, half a voxel too far out for odd ones
    other = np.array([3.0, -20.0, 41.5]) - 126.0 * plane.along_columns - 115.0 * plane.along_rows
    row, column, off_plane = plane.voxel(other)
    assert (row, column, off_plane) == pytest.approx((-0.5 * (rows % 2), -0.5 * (columns % 2), 0), abs=1e-5)


def test_the_transform_has_its_origin_at_voxel_n_over_2():
    # k-space of a point where the gradients encode zero is 1 everywhere
    for rows, columns in ((8, 9), (7, 6)):
        image = to_image(torch.ones(rows, columns, dtype=torch.complex64)).abs()
        assert divmod(int(image.argmax()), columns) == (rows // 2, columns // 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"read_dir": (0, 0, 0)}, "read_dir"),
        ({"phase_dir": (np.cos(0.4), np.sin(0.4), 0)}, "right angles"),
        ({"field_of_view": (0, 230, 4)}, "field of view"),
        ({"position": (np.nan, 0, 0)}, "position"),
    ],
)
def test_headers_without_geometry_are_refused(change, words):
    header = head()
    for name, value in change.items():
        getattr(header, name)[:] = value
    with pytest.raises(BadInputError, match=words):
        plane_of_mrd(header, (64, 64))


def test_orientation_letters():
    assert orientation_letters(np.array([1.0, 0, 0])) == "L"
    assert orientation_letters(np.array([0, -0.9, 0.4])) == "AH"
    assert orientation_letters(np.array([-0.5, 0.2, -0.84])) == "FRP"


def test_slices_that_are_turned_in_their_plane_are_no_stack():
    planes = [plane_of_mrd(head((0, -0.6 * 7 * n, 0.8 * 7 * n), angle=0.0), (75, 90)) for n in range(3)]
    assert slice_spacing(planes) == pytest.approx(7)
    one = planes[1]
    planes[1] = replace(one, along_columns=-one.along_columns, along_rows=-one.along_rows)
    assert planes[1].normal == pytest.approx(one.normal)
    assert slice_spacing(planes) is None
