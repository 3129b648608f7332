"""The overview shows every scan at the same place of the patient, whatever its planes, matrix and field of view."""

from dataclasses import replace

import ismrmrd
import matplotlib.image
import numpy as np
import pytest
from dpmrecon.output.images_file import store
from dpmrecon.output.maps import TRACE
from dpmrecon.output.mrd_images import image_of
from dpmrecon.output.overview import Shown, _paired, _Stack, _view, write_overview
from dpmrecon.output.weighting import Weighted

from support.volume_images import reconstructed, volume_line, volume_xml, write_images

AXIAL = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
SAGITTAL = ((0, 0, -1), (0, 1, 0), (1, 0, 0))
CORONAL = ((1, 0, 0), (0, 0, -1), (0, 1, 0))
TURNED = ((0, -1, 0), (1, 0, 0), (0, 0, 1))


def scan(folder, shape, fov, position, directions, place=lambda x, y, z: x + 2 * y + 3 * z):
    """images.h5 of a volume (partitions, rows, cols) whose voxels tell their place in the patient, in mm."""
    read, phase, through = np.array(directions, float)
    spacing = [length / count for length, count in zip(fov, shape)]
    offsets = [(np.arange(count) - count // 2) * step for count, step in zip(shape, spacing)]
    points = (
        np.array(position)
        + offsets[0][:, None, None, None] * through
        + offsets[1][:, None, None] * phase
        + offsets[2][:, None] * read
    )
    folder.mkdir()
    line = volume_line(position, *directions)
    values = 500 + place(*np.moveaxis(points, -1, 0))
    write_images(folder / "images.h5", volume_xml(shape, fov=fov), line, [reconstructed(values, scale=1000.0)])
    return folder


def shown(folder, row="accelerated", contrast=None, name="NAME", frame="1"):
    return Shown(folder, name, row, contrast, frame)


def stacks(*folders):
    return [(shown(folder), _Stack.read(folder / "images.h5", 1)) for folder in folders]


@pytest.mark.parametrize("directions", [SAGITTAL, CORONAL, TURNED], ids=["sagittal", "coronal", "turned"])
def test_volumes_are_seen_at_the_place_of_the_slice(tmp_path, directions):
    slice_ = scan(tmp_path / "slice", (1, 24, 31), (4.0, 60.0, 62.0), (1.0, -2.0, 7.0), AXIAL)
    volume = scan(tmp_path / "volume", (40, 39, 46), (80.0, 78.0, 92.0), (0.0, 1.0, 5.0), directions)
    found = stacks(volume, slice_)
    frame, view, size = _view(found)
    assert frame == "1"
    assert view.directions == pytest.approx(np.array([(0, 0, 1), (0, 1, 0), (1, 0, 0)]), abs=1e-6)
    own, other = (stack.picture(view, size) for _, stack in reversed(found))
    assert (own[1], other[1]) == ("", "")
    # both are linear in the place, but for the outer half of the slice's last voxels
    middle = np.s_[12:-12, 12:-12]
    assert own[0][middle] == pytest.approx(other[0][middle], abs=0.05)
    assert np.ptp(own[0][middle]) > 100


def test_the_slice_is_chosen_that_all_scans_show(tmp_path):
    thick = scan(tmp_path / "thick", (1, 16, 16), (4.0, 60.0, 60.0), (0.0, 0.0, 0.0), AXIAL)
    ((_, stack),) = stacks(thick)
    grid, pixels = stack.parts[0]
    levels = [-20.0, -10.0, 0.0, 10.0, 20.0]
    stack.parts = [(_moved(grid, level), pixels) for level in levels]
    volume = stacks(scan(tmp_path / "volume", (20, 16, 16), (20.0, 60.0, 60.0), (0.0, 0.0, 12.0), AXIAL))[0]
    _, view, size = _view([(shown(thick), stack), volume])
    assert view.first[2] == pytest.approx(10.0)  # of 2 to 20 mm, the slice nearest to the middle
    far = _moved(view, 31.0)
    assert stack.picture(far, size)[1] == "21 mm off"
    assert stack.picture(_moved(view, 3.0), size)[1] == ""


def _moved(grid, z):
    return replace(grid, first=grid.first + (0.0, 0.0, z))


def test_slices_of_another_orientation_say_so(tmp_path):
    axial = scan(tmp_path / "axial", (1, 16, 16), (4.0, 60.0, 60.0), (0.0, 0.0, 0.0), AXIAL)
    coronal = scan(tmp_path / "coronal", (1, 16, 20), (4.0, 60.0, 60.0), (0.0, 0.0, 0.0), CORONAL)
    found = stacks(coronal, axial)
    _, view, size = _view(found)
    picture, note = found[0][1].picture(view, size)
    assert (picture.shape, note) == ((16, 20), "another orientation")


def test_the_trace_of_the_largest_b_value_is_shown(tmp_path):
    """Whatever its counter is."""
    b_values = (500.0, 1000.0, 0.0)
    folder = scan(tmp_path / "dwi", (1, 16, 16), (4.0, 60.0, 60.0), (0.0, 0.0, 0.0), AXIAL)
    dataset = ismrmrd.Dataset(str(folder / "images.h5"), "dataset", create_if_needed=False)
    head = dataset.read_image("image_1", 0).getHead()
    head.image_series_index = TRACE
    for number, b in enumerate(b_values):
        head.contrast = number
        store(dataset, image_of(np.full((16, 16), b, np.float32), head, Weighted(b).meta))
    dataset.close()
    stack = _Stack.read(folder / "images.h5", TRACE)
    assert [float(pixels.max()) for _, pixels in stack.parts] == [1000.0]


def test_counterparts_share_a_column(tmp_path):
    scans = [
        shown(tmp_path / "a", contrast="flair", name="FLAIR fast"),
        shown(tmp_path / "b", contrast="t1", name="MPRAGE"),
        shown(tmp_path / "c", contrast="t1", name="T1 TSE"),
        shown(tmp_path / "d", "reference", "t1", "T1 TSE"),
        shown(tmp_path / "e", "reference", "flair", "FLAIR"),
        shown(tmp_path / "f", "reference", None, "LOCALIZER"),
    ]
    numbers = {folder.name: number for folder, number in _paired(scans).items()}
    assert numbers["d"] == numbers["c"]
    assert numbers["e"] == numbers["a"]
    assert len(set(numbers.values())) == 4


def test_the_picture_has_a_cell_for_each_kind_and_set(tmp_path):
    axial = scan(tmp_path / "axial", (1, 16, 17), (4.0, 60.0, 60.0), (0.0, 0.0, 0.0), AXIAL)
    again = scan(tmp_path / "again", (1, 15, 16), (4.0, 60.0, 60.0), (0.0, 0.0, 0.0), AXIAL)
    other = scan(tmp_path / "other", (12, 16, 20), (24.0, 60.0, 60.0), (0.0, 0.0, 0.0), SAGITTAL)
    rows = ["reference", "accelerated"]
    scans = [shown(axial), shown(again, "reference"), shown(other, name="OTHER", frame="2")]
    write_overview(tmp_path / "overview.png", scans, rows)
    height, width, _ = matplotlib.image.imread(tmp_path / "overview.png").shape
    assert (height, width) == (round(100 * (2 * 3.05 + 0.2)), 500)
    first = (tmp_path / "overview.png").read_bytes()
    write_overview(tmp_path / "overview.png", scans, rows)
    assert (tmp_path / "overview.png").read_bytes() == first
    write_overview(tmp_path / "nothing.png", [], rows)
    assert not (tmp_path / "nothing.png").exists()
