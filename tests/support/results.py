"""`dpmrecon replay` as a function, and what lies in the folder of its results."""

import json

import ismrmrd
from dpmrecon.cli import main


def replay(scan, out, model, *options: str) -> int:
    """The command's exit code."""
    return main(["replay", str(scan), "--out", str(out), "--model", str(model), "--device", "cpu", *options])


def report(out) -> dict:
    return json.loads((out / "report.json").read_text())


def images(out, series: int = 1) -> list[ismrmrd.Image]:
    """Of images.h5, in the order of the file."""
    dataset = ismrmrd.Dataset(str(out / "images.h5"), "dataset", create_if_needed=False)
    try:
        name = f"image_{series}"
        return [dataset.read_image(name, index) for index in range(dataset.number_of_images(name))]
    finally:
        dataset.close()


def images_of(out) -> dict[tuple[int, int], ismrmrd.Image]:
    """The images and their standard deviations by (series, slice)."""
    return by_place([*images(out, 1), *images(out, 2)])


def by_place(images: list[ismrmrd.Image]) -> dict[tuple[int, int], ismrmrd.Image]:
    return {(image.getHead().image_series_index, image.getHead().slice): image for image in images}
