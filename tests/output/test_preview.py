"""The picture: a row a slice, errors five times brighter and in colour, planes of unequal heights below each other."""

import numpy as np
from dpmrecon.output.preview import GAP, TITLE, WIDTH, coloured, write_preview
from PIL import Image


def test_grey_ends_at_bright_and_errors_are_five_times_as_bright():
    image = np.array([[0.0, 1.0, 2.0, 3.0, np.nan]])
    assert coloured(image, 2.0, False)[0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [255] * 3, [0] * 3]
    # black, then red, yellow, white, of which the last at a fifth of bright
    error = coloured(np.array([[0.0, 1 / 15, 2 / 15, 0.2]]), 1.0, True)[0].tolist()
    assert error == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]


def test_rows_of_unequal_heights_lie_below_each_other_and_keep_their_aspect(tmp_path):
    shapes, aspects = ((30, 40), (20, 25)), [1.0, 2.5]
    rows = [{"DPM": np.ones(shape), "error DPM x5": np.full(shape, 0.2)} for shape in shapes]
    write_preview(tmp_path / "p.png", rows, ["slice 0: ", "slice 1: "], aspects)
    with Image.open(tmp_path / "p.png") as file:
        page = np.asarray(file)
    heights = [round(aspect * WIDTH * rows / cols) + TITLE for aspect, (rows, cols) in zip(aspects, shapes)]
    assert page.shape == (sum(heights), 2 * WIDTH + GAP, 3)
    for top, height in zip((0, heights[0]), heights):
        assert (page[top + TITLE : top + height, :WIDTH] == 255).all()  # the images are white to their edges
        assert (page[top + TITLE : top + height, WIDTH : WIDTH + GAP] == 0).all()
        assert 0 < (page[top : top + TITLE] > 128).mean() < 0.2  # letters


def test_what_a_row_lacks_is_black(tmp_path):
    white = np.ones((20, 25))
    rows = [{"DPM": white}, {"DPM": white, "truth": white}]
    write_preview(tmp_path / "p.png", rows, ["slice 0: ", "slice 1: "], [1.0, 1.0])
    with Image.open(tmp_path / "p.png") as file:
        above, below = np.split(np.asarray(file)[:, WIDTH + GAP :], 2)
    assert (above == 0).all()
    assert (below[TITLE:] == 255).all()
