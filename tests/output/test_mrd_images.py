"""Headers and meta of the images that go out, against those of Gadgetron's own chain on the same scans."""

from dataclasses import replace

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.data import LostSlice, SliceKey
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.geometry import grid_of_mrd
from dpmrecon.mrd.header import view_pixels, voxel_mm
from dpmrecon.mrd.lines import LineHeader
from dpmrecon.output.mrd_images import BRIGHT, HEAD, derived_meta, mrd_images, remarks_of, to_recon_space
from dpmrecon.output.whole_numbers import LARGEST, SpreadScale, to_uint16
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.prior.samplers.diffusion import SamplerSettings
from dpmrecon.recon.provenance import Provenance
from dpmrecon.recon.types import MappedSlice, Reconstruction, Sampling

from support.models import TINY
from support.paths import shared
from support.volume_images import volume_header, volume_line, volume_of

# What Gadgetron's chain says and ours does not, and why
ABSENT = {
    "acquisition_time_range": "first and last line's stamp: of use to cine alone",
    "physiology_time_range": "first and last line's stamp: of use to cine alone",
    "sampling_limits_RO": "of the k-space, which the image has left behind",
    "sampling_limits_E1": "of the k-space, which the image has left behind",
    "sampling_limits_E2": "of the k-space, which the image has left behind",
    "gadgetron_sha1": "its build; ours is in dpmrecon_version and dpmrecon_checksum",
    "deviceID": "a piece of measurementID, which is there whole",
    "patientID": "a piece of measurementID, which is there whole",
    "studyID": "a piece of measurementID, which is there whole",
    "measurementNumber": "a piece of measurementID, which is there whole",
    **{f"user_{kind}_{number}": "all zero: nothing to hand on" for kind in ("int", "float") for number in range(8)},
}
# What both say, with other values, and why
DIFFERENT = {
    "GADGETRON_ImageComment": "RESEARCH and the fallback instead of GT and its scale",
    "GADGETRON_ImageProcessingHistory": "who made the image",
    "GADGETRON_SeqDescription": "who made the image",
    "GADGETRON_ScaleRatio": "the 99th percentile is brought to 1000, theirs is times 10",
}


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint(Denoiser(TINY), {"checksum_sha256": "c0ffee"}, "tiny-c0ffee")


SAMPLING = Sampling("prox", SamplerSettings(steps=4), 2, 11, 4, True)


def reconstruction(data, *, scale=2.0, fallback=None) -> Reconstruction:
    """As if the slice had been sampled: the header and the meta do not depend on the pixels."""
    image = torch.full(data.mask.shape, scale, dtype=torch.complex64)
    spread = image.real / 10
    mapped = MappedSlice(data, None, torch.ones_like(image), scale, image, image, {})
    drawn = (0, 0, 0) if fallback else (2, 4, 7)  # a deadline kept the last evaluation
    return Reconstruction(mapped, image, None if fallback else spread, fallback, 1.0, {}, *drawn)


def images_of(scan, checkpoint, **options):
    with open_scan(scan) as opened:
        heads = {}
        stream = [reconstruction(data, **options) for data in slices(opened.acquisitions(), opened.header, heads)]
        provenance = Provenance.of(checkpoint, "flair", SAMPLING)
        return [image for _, images in mrd_images(stream, opened.header, heads, provenance) for image in images]


@pytest.mark.parametrize("name", ["flair_3slices_r4", "flair_3slices_r4_separate_acs", "t1_brain_r4"])
def test_headers_and_meta_are_those_of_gadgetrons_own_chain(name, checkpoint):
    theirs = shared(f"gadgetron_grappa/{name}.h5")
    compare(images_of(shared(f"ismrmrd/{name}.h5"), checkpoint), theirs)


def test_a_volume_is_one_image_as_gadgetrons_own_3d_chain_gives_it(checkpoint):
    with open_scan(shared("scans3d/flair3d_r2x2.h5")) as scan:
        header = scan.header
        (central,) = [line for line in scan.acquisitions() if is_central(line) and line.idx.kspace_encode_step_2 == 20]
    data = volume_of((40, 56, 64))
    heads = {data.key: LineHeader.of(central.getHead())}
    stream = [reconstruction(data)]
    found = [images for _, images in mrd_images(stream, header, heads, Provenance.of(checkpoint, "flair", SAMPLING))]
    assert [image.data.shape for image in found[0]] == [(1, 40, 56, 64)] * 2
    # theirs is the stamp of the block's first line of the central partition, ours that of the centre's line
    compare(found[0], shared("scans3d/flair3d_r2x2_grappa.h5"), {"acquisition_time_stamp"})


def is_central(line) -> bool:
    return line.idx.kspace_encode_step_1 == 28 and not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def compare(images, theirs, apart=frozenset()):
    """Field by field; images: ours, theirs: the file of a Gadgetron's client; apart: what is not equal."""
    found = [to_uint16(image) for image in images]
    found = [image for image in found if image.getHead().image_series_index == 1]
    with h5py.File(theirs) as file:
        heads = file["res/image_1/header"][:]
        metas = [ismrmrd.Meta.deserialize(text.decode()) for text in file["res/image_1/attributes"]]
    assert len(found) == len(heads)
    for image, head, meta in zip(found, heads, metas):
        for field in head.dtype.names:
            if field != "attribute_string_len":  # the meta differs
                ours = np.array(getattr(image.getHead(), field))
                assert np.allclose(ours, head[field], rtol=1e-6, atol=1e-5) == (field not in apart), field
        ours = image.meta
        assert set(meta) - set(ours) == set(ABSENT)
        assert {key for key in meta if key in ours and ours[key] != meta[key]} == set(DIFFERENT) | apart


def test_both_key_sets_and_provenance(simulated_scan, checkpoint):
    for image in images_of(simulated_scan(matrix=(48, 64)), checkpoint):
        meta = image.meta
        for one, other in (
            ("ImageComments", "GADGETRON_ImageComment"),
            ("ImageProcessingHistory", "GADGETRON_ImageProcessingHistory"),
            ("WindowCenter", "GADGETRON_WindowCenter"),
            ("WindowWidth", "GADGETRON_WindowWidth"),
        ):
            assert meta[one] == meta[other]
        assert int(meta["WindowWidth"]) > 0
        notice = "RESEARCH: not for diagnostic use"
        if meta["DataRole"] == "Uncertainty":
            notice += "; spread of the fast mode, far below the error: mode uncertainty tells it"
        assert meta["ImageComments"] == notice
        assert meta["GADGETRON_DataRole"] == "Image"
        provenance = {key.removeprefix("dpmrecon_"): meta[key] for key in meta if key.startswith("dpmrecon_")}
        del provenance["version"]
        assert provenance == {
            "model": "tiny-c0ffee",
            "mode": "fast",
            "checksum": "c0ffee",
            "sampler": "prox",
            "steps": "4",
            "samples": "2",
            "evaluations": "7",
            "seed": "11",
            "residual": "1",
            "verdict": "trusted",
        }


@pytest.mark.parametrize(
    "drawn, told", [((2, 4, 8), ""), ((2, 4, 7), "2 x 4 steps, stopped"), ((2, 3, 6), "2 x 3 steps:")]
)
def test_a_spread_of_fewer_steps_than_the_modes_is_said(simulated_scan, checkpoint, drawn, told):
    with open_scan(simulated_scan(matrix=(48, 64))) as opened:
        heads = {}
        (data,) = slices(opened.acquisitions(), opened.header, heads)
        provenance = Provenance.of(checkpoint, "flair", replace(SAMPLING, mode="uncertainty"))
        samples, steps, evaluations = drawn
        item = replace(reconstruction(data), samples=samples, steps=steps, evaluations=evaluations)
        ((_, images),) = mrd_images([item], opened.header, heads, provenance)
    image, spread = (image.meta["ImageComments"] for image in images)
    assert ("need not tell the error" in spread) == bool(told) and told in spread
    assert "spread" not in image


def test_a_fallback_is_labelled(simulated_scan, checkpoint):
    (image,) = images_of(simulated_scan(matrix=(48, 64)), checkpoint, fallback="the deadline of 3 s had passed")
    assert image.meta["ImageComments"].endswith("CG-SENSE FALLBACK: the deadline of 3 s had passed")
    assert "CG-SENSE FALLBACK" in image.meta["SeriesDescription"]
    assert "CG-SENSE FALLBACK" in image.meta["GADGETRON_SeqDescription"]
    assert image.meta["dpmrecon_sampler"] == "cg-sense"
    assert image.meta["dpmrecon_fallback"] == "the deadline of 3 s had passed"


def test_one_scale_for_the_series_and_numbers_by_place(simulated_scan, checkpoint):
    with open_scan(simulated_scan(matrix=(48, 64), n_slices=3)) as opened:
        heads = {}
        data = [replace(one, sigma_n=1e-5) for one in slices(opened.acquisitions(), opened.header, heads)]
        lost = LostSlice(SliceKey(0), "incomplete")
        stream = [lost, reconstruction(data[2], scale=0.004), reconstruction(data[1], scale=0.12)]
        found = [
            images for _, images in mrd_images(stream, opened.header, heads, Provenance.of(checkpoint, None, SAMPLING))
        ]
    assert [len(images) for images in found] == [0, 2, 2]
    dim, bright = found[1][0], found[2][0]
    assert np.allclose(dim.data, BRIGHT)
    assert np.allclose(bright.data, 30 * BRIGHT)
    assert np.allclose(bright.data * float(bright.meta["RescaleSlope"]), 0.12)
    assert [image.getHead().image_index for image in (dim, bright)] == [3, 2]
    whole = to_uint16(bright)
    assert whole.data.dtype == np.uint16
    assert np.all(whole.data == 30 * BRIGHT)
    assert whole.attribute_string == bright.attribute_string
    bright.data[:] = 1e6
    bright.data[0, 0, 0, :2] = LARGEST
    whole = to_uint16(bright)
    assert whole.data.max() == LARGEST
    (remark,) = remarks_of(whole.meta)
    assert remark.startswith(f"{bright.data.size - 2} pixels are brighter than {LARGEST}")
    assert all(whole.meta[name].endswith(remark) for name in ("ImageComments", "GADGETRON_ImageComment"))


def test_a_first_slice_of_noise_alone_gives_no_scale(simulated_scan, checkpoint):
    with open_scan(simulated_scan(matrix=(48, 64), n_slices=3)) as opened:
        heads = {}
        noise, head, _ = slices(opened.acquisitions(), opened.header, heads)
    stream = [reconstruction(noise, scale=3 * noise.sigma_n), reconstruction(head, scale=200 * head.sigma_n)]
    provenance = Provenance.of(checkpoint, None, SAMPLING)
    _, (image, *_) = (found for _, found in mrd_images(stream, opened.header, heads, provenance))
    assert np.allclose(image.data, BRIGHT * 200 / HEAD)
    assert to_uint16(image).attribute_string == image.attribute_string


SCAN = {"matrix": (48, 64), "n_slices": 3, "acceleration": 2}


def test_recon_space_keeps_centre_and_intensity(simulated_scan):
    with open_scan(simulated_scan(**SCAN)) as scan:
        header = scan.header
    space = header.encoding[0]
    space.encodedSpace.matrixSize.y, space.encodedSpace.fieldOfView_mm.y = 48, 230 * 48 / 40  # 40 rows are kept
    space.reconSpace.matrixSize.y, space.reconSpace.matrixSize.x = 80, 65
    image = torch.zeros(48, 64, dtype=torch.complex64)
    image[24 - 6 : 24 + 7, 32 - 5 : 32 + 6] = 1
    found = to_recon_space(image, header).abs()
    assert found.shape == (80, 65)
    rows, cols = torch.meshgrid(torch.arange(80.0), torch.arange(65.0), indexing="ij")
    assert float((found * rows).sum() / found.sum()) == pytest.approx(40, abs=0.1)
    assert float((found * cols).sum() / found.sum()) == pytest.approx(32, abs=0.1)
    assert found[40, 32] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("depth", [(), (5,)])
def test_a_wider_field_of_view_than_the_encoded_one_has_empty_columns(depth):
    header = volume_header(matrix=(5, 13, 17), recon=(5, 13, 23), fov=(20.0, 39.0, 46.0))
    header.encoding[0].encodedSpace.fieldOfView_mm.x = 34.0  # columns of 2 mm in both
    image = torch.zeros(*depth, 13, 17, dtype=torch.complex64)
    image[..., 4, 0] = image[..., 9, 16] = 1
    found = to_recon_space(image, header)
    expected = torch.zeros(*depth, 13, 23, dtype=torch.complex64)
    expected[..., 4, 11 - 8] = expected[..., 9, 11 + 8] = 1
    assert torch.equal(found, expected)
    assert view_pixels(header) == (5, 13, 23)


@pytest.mark.parametrize(
    ("asked", "view"),
    [
        ((25.0, 35.0, 46.7), (24.0, 36.0, 46.0)),  # 12 partitions, 12 rows, 23 columns of those encoded
        ((26.04, 39.0, 34.0), (26.04, 39.0, 34.0)),  # what a header's rounding leaves
        ((42.0, 39.0, 69.2), (42.0, 39.0, 70.0)),  # 35 columns, some of them empty
    ],
)
def test_voxels_keep_their_size_where_a_field_of_view_cuts_them(checkpoint, asked, view):
    header = volume_header(matrix=(21, 13, 33), recon=(13, 12, 23), fov=(42.0, 39.0, 66.0))
    fov, data = header.encoding[0].reconSpace.fieldOfView_mm, volume_of((21, 13, 33))
    fov.z, fov.y, fov.x = asked
    sizes = tuple(length / encoded for length, encoded in zip(view, (2.0, 3.0, 2.0)))
    assert view_pixels(header) == tuple(map(round, sizes))
    heads = {data.key: volume_line()}
    stream = mrd_images([reconstruction(data)], header, heads, Provenance.of(checkpoint, "flair", SAMPLING))
    ((_, (image, _)),) = stream
    assert image.getHead().field_of_view[::-1] == pytest.approx(view)
    assert [float(length) for length in image.meta["recon_FOV"]] == pytest.approx(view[::-1])
    spacing = grid_of_mrd(image.getHead(), image.data.shape).spacing_mm
    assert spacing == pytest.approx([length / size for length, size in zip(view, (13, 12, 23))])
    assert voxel_mm(header) == pytest.approx((2.0, 3.0, 2.0), rel=0.01)


def test_a_volume_loses_its_oversampled_partitions_and_keeps_its_centre():
    header = volume_header(matrix=(13, 20, 16), recon=(9, 25, 21), oversampled=1.3)
    space = header.encoding[0]
    assert (space.encodedSpace.matrixSize.z, space.encodedSpace.fieldOfView_mm.z) == (13, pytest.approx(1.3 * 20))
    image = torch.zeros(13, 20, 16, dtype=torch.complex64)
    image[6 - 2 : 6 + 3, 10 - 4 : 10 + 5, 8 - 3 : 8 + 4] = 1
    found = to_recon_space(image, header).abs()
    assert found.shape == (9, 25, 21)  # 13 partitions of 1.3 times the field of view are 10 of it
    for axis, centre, scale in ((0, 4, 0.9), (1, 12, 1.25), (2, 10, 21 / 16)):
        places = torch.arange(float(found.shape[axis])) - centre
        profile = found.sum(tuple(other for other in range(3) if other != axis))
        assert float((profile * places).sum() / profile.sum()) == pytest.approx(0, abs=0.1)
        width = float((profile > profile.max() / 2).sum())
        assert width == pytest.approx(
            scale * (image.abs().sum((0, 1, 2)[:axis] + (0, 1, 2)[axis + 1 :]) > 0).sum(), abs=1
        )
    assert found[4, 12, 10] == pytest.approx(1, abs=0.15)


def test_a_volume_is_resampled_as_its_planes_are():
    """Rows and columns alone: each partition comes out as a slice of the same header would."""
    header = volume_header(matrix=(5, 12, 14), recon=(5, 17, 10))
    image = torch.randn(5, 12, 14, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    whole = to_recon_space(image, header)
    planes = torch.stack([to_recon_space(plane, header) for plane in image])
    torch.testing.assert_close(whole, planes, rtol=1e-5, atol=1e-5)


def test_a_volume_in_whole_numbers_and_its_echoes(checkpoint):
    header = volume_header(matrix=(3, 8, 10), contrasts=2)
    data = [volume_of((3, 8, 10), contrast=number) for number in (0, 1)]
    heads = {item.key: volume_line() for item in data}
    stream = [reconstruction(item) for item in data]
    outputs = ("magnitude", "phase", "complex")
    provenance = Provenance.of(checkpoint, None, SAMPLING)
    images = [found for _, found in mrd_images(stream, header, heads, provenance, outputs)]
    for number, echo in enumerate(images):
        for image in echo:
            head = image.getHead()
            assert (head.image_index, head.contrast, head.slice) == (1 + number, number, 0)
            assert tuple(head.matrix_size) == (10, 8, 3)
            whole = to_uint16(SpreadScale()(image))
            assert whole.data.shape == (1, 3, 8, 10)
            assert whole.data.dtype == (np.complex64 if head.image_series_index == 7 else np.uint16)


def test_a_map_has_the_whole_name_of_the_protocol():
    for protocol, told in (({"protocolName": "Ax DWI b1000"}, "Ax DWI b1000"), ({}, "scan")):
        meta = {"SeriesDescription": "Ax DWI b1000 DPM RESEARCH", **protocol}
        assert derived_meta(meta, "ADC", "ADC", "", "ADC")["SeriesDescription"] == f"{told} ADC RESEARCH"
