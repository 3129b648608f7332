"""Preview, scores, report, the conventional image and diffusion maps of volumes."""

import dataclasses

import ismrmrd
import numpy as np
import pytest
from dpmrecon.data import LostSlice, SliceKey
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.header import n_partitions
from dpmrecon.mrd.scan_log import ScanLog
from dpmrecon.output import images_file, preview
from dpmrecon.output.images_file import CONVENTIONAL
from dpmrecon.output.maps import ADC, Maps, adc_map
from dpmrecon.output.mrd_images import mrd_images
from dpmrecon.output.names import Names
from dpmrecon.output.preview import Preview
from dpmrecon.output.report import Report, described
from dpmrecon.output.scores import Scores, Truth
from dpmrecon.output.weighting import Weighted, Weighting
from dpmrecon.recon.types import Reconstruction

from support.volume_images import PROVENANCE, reconstructed, volume_header, volume_line

SHAPE, FOV = (5, 8, 6), (10.0, 24.0, 12.0)  # mm: partitions of 2, rows of 3, columns of 2


def pixels(seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, SHAPE).astype(np.float32)


def images_of(item: Reconstruction, header, line=None) -> list[ismrmrd.Image]:
    ((_, found),) = mrd_images([item], header, {item.key: line or volume_line()}, PROVENANCE)
    return found


def test_a_2d_header_is_no_volume():
    assert n_partitions(volume_header(matrix=(1, 8, 6))) == 1
    assert n_partitions(volume_header(matrix=SHAPE)) == 5


def test_a_preview_shows_the_middle_planes_as_readers_look_at_them(tmp_path, monkeypatch):
    header, item = volume_header(matrix=SHAPE, fov=FOV), reconstructed(pixels())
    truth = tmp_path / "truth.npy"
    np.save(truth, 3 * pixels())
    shown = []
    writer = Preview(tmp_path / "preview.png", header, Truth(truth, None, header), Names(), 1)
    writer.add(item, images_of(item, header))  # sagittal: partitions to the left, rows to the back, columns to the feet
    writer.close(None)
    assert (tmp_path / "preview.png").stat().st_size > 10_000
    monkeypatch.setattr(preview, "write_preview", lambda *given: shown.append(given))
    writer.close(None)
    ((_, rows, titles, aspects),) = shown
    assert titles == ["axial: ", "coronal: ", "sagittal: "]
    axial, coronal, sagittal = (row["DPM"] for row in rows)
    # slices go to the head, to the back and to the right; columns came from head to feet
    assert axial == pytest.approx(pixels()[:, :, ::-1][:, :, 3].T)
    assert coronal == pytest.approx(pixels()[:, 4, :].T)
    assert sagittal == pytest.approx(pixels()[2].T)
    assert aspects == pytest.approx([3 / 2, 2 / 2, 2 / 3])
    for row in rows:
        assert list(row)[:3] == ["zero-filled", "CG-SENSE", "DPM"]
        assert row["error DPM x5"] == pytest.approx(0, abs=1e-5)


def test_a_preview_says_in_which_counters_images_differ(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(preview, "write_preview", lambda path, rows, titles, aspects: shown.append(titles))

    def titles(*keys, planes=1, times=(5.0,)):
        header = volume_header(matrix=SHAPE, fov=FOV, echo_times=times)
        names = Names.of(keys, header)
        writer = Preview(tmp_path / "preview.png", header, Truth(None, None, header), names, len(keys))
        for key in keys:
            item = dataclasses.replace(reconstructed(pixels()), fallback="why" if key.repetition else None)
            item.mapped.data.key = key
            with monkeypatch.context() as patch:
                if planes == 1:
                    patch.setattr(preview, "pictures_of", lambda item, header: {"DPM": pixels()[0]})
                writer.add(item, images_of(item, header))
        writer.close(None)
        return shown.pop()

    volume = titles(SliceKey(0, contrast=1), SliceKey(2, contrast=0), planes=3, times=(5.0, 9.0))
    assert volume[2:4] == ["sagittal, slab 0, echo 1: ", "axial, slab 2, echo 0: "]
    assert titles(SliceKey(3), SliceKey(4)) == ["slice 3: ", "slice 4: "]
    assert titles(SliceKey(3), SliceKey(3, 1), times=(5.0, 9.0)) == ["slice 3, echo 0: ", "slice 3, echo 1: "]
    assert titles(SliceKey(3), SliceKey(3, 1), times=()) == ["slice 3, contrast 0: ", "slice 3, contrast 1: "]
    again = titles(SliceKey(3, set=1), SliceKey(3, set=1, repetition=2))
    assert again == ["slice 3, repetition 0: ", "slice 3, repetition 2 FALLBACK: "]


def test_a_preview_needs_no_directions(tmp_path):
    header, item = volume_header(matrix=SHAPE, fov=FOV), reconstructed(pixels())
    writer = Preview(tmp_path / "preview.png", header, Truth(None, None, header), Names(), 1)
    writer.add(item, images_of(item, header, volume_line(slice_dir=(0.0, 0.0, 0.9))))
    writer.close(None)
    assert writer.rows[0]["DPM"] == pytest.approx(pixels()[2])  # as if they were the patient's


def test_a_volume_is_scored_as_a_whole(tmp_path):
    header, found = volume_header(matrix=SHAPE, fov=FOV), pixels(1)
    item, true = reconstructed(found), pixels(2)
    np.save(tmp_path / "truth.npy", true)
    np.save(tmp_path / "mask.npy", true > 1.3)
    report = Report(tmp_path / "report.json", "scan.h5", PROVENANCE, ScanLog())
    scores = Scores(Truth(tmp_path / "truth.npy", tmp_path / "mask.npy", header), header, report)
    for writer in (scores, report):
        writer.add(item, [])
        writer.close(None)
    inside = true > 1.3
    a = (found[inside] @ true[inside]) / (found[inside] @ found[inside])
    expected = np.linalg.norm(a * found[inside] - true[inside]) / np.linalg.norm(true[inside])
    assert report.nrmse["DPM"]["slices"] == [pytest.approx(expected, rel=1e-5)]
    (entry,) = report.as_json()["slices"]
    assert (entry["slice"], entry["partitions"], entry["matrix"]) == (0, 5, [2, 5, 8, 6])
    assert described(item, Names()).startswith("volume of 5 partitions: DPM, 1 x 4 steps")
    names = Names.of([SliceKey(0), SliceKey(0, repetition=1)], header)
    assert described(item, names).startswith("volume of 5 partitions, repetition 0: DPM, 1 x 4 steps")


def test_the_screen_says_which_echo_is_meant(tmp_path):
    header = volume_header(matrix=SHAPE, fov=FOV, echo_times=(5.0, 9.0))
    keys = [SliceKey(number, echo) for number in (0, 1, 2) for echo in (0, 1)]
    report = Report(tmp_path / "report.json", None, PROVENANCE, names=Names.of(keys, header))
    for key in keys:
        item = reconstructed(pixels())
        item.mapped.data.key = key
        doubtful = ["everywhere"] + ["once"] * (key == SliceKey(1, 1)) + ["in two"] * (key.slice == 2)
        report.add(dataclasses.replace(item, remarks=tuple(doubtful)), [])
    assert report.remarks == ["slices 0, 1, 2: everywhere", "slice 1, echo 1: once", "slice 2: in two"]
    lost = LostSlice(SliceKey(3, 1), "why")
    assert described(lost, report.names) == "slice 3, echo 1: MISSING: why"
    assert described(lost, Names.of([SliceKey(3), SliceKey(4)], header)) == "slice 3, echo 1: MISSING: why"
    assert described(lost, Names.of([SliceKey(3, 1), SliceKey(4, 1)], header)) == "slice 3: MISSING: why"


@pytest.mark.parametrize("shape", [(8, 6), (8, 5, 6), (5, 8, 7)])
def test_a_truth_of_another_matrix_is_refused(tmp_path, shape):
    np.save(tmp_path / "truth.npy", np.ones(shape))
    with pytest.raises(BadInputError, match=r"images are \(5, 8, 6\): give \(partitions, rows, cols\)"):
        Truth(tmp_path / "truth.npy", None, volume_header(matrix=SHAPE, fov=FOV))


def test_the_conventional_image_of_a_volume_lies_beside_it(monkeypatch):
    header, item = volume_header(matrix=SHAPE, fov=FOV), reconstructed(pixels())
    other = Reconstruction(item.mapped, item.image / 2, None, "asked for", 1.0)
    monkeypatch.setattr(images_file, "conventional", lambda mapped, reason: other)
    (image,) = images_of(item, header)
    found = images_file._conventional(image, item, header)
    assert found.image_series_index == CONVENTIONAL
    assert found.data == pytest.approx(image.data / 2)
    assert list(found.getHead().position) == list(image.getHead().position)


def test_diffusion_maps_of_a_volume():
    header, line = volume_header(matrix=SHAPE, fov=FOV, contrasts=2), volume_line()
    weighting, put, notes = Weighting("contrast", (Weighted(0.0), Weighted(1000.0)), "the header"), [], []
    maps = Maps(header, weighting, put.append, notes.append)
    items = [reconstructed(pixels(number), number, scale=1.0) for number in (0, 1)]
    for item, images in mrd_images(items, header, {item.key: line for item in items}, PROVENANCE):
        maps.add(item, images)
    maps.close(None)
    assert notes == []
    adc = next(image for image in put if image.image_series_index == ADC)
    assert adc.data.shape == (1, *SHAPE)
    for number in range(5):
        signals = np.stack([pixels(0)[number], pixels(1)[number]])
        # one threshold of air for the whole volume, which none of these voxels is under
        assert adc.data[0, number] == pytest.approx(adc_map(signals, np.array([0.0, 1000.0])), rel=1e-4, abs=1e-9)
    assert items[0].key == SliceKey(0, 0)
