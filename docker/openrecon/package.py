"""Pack an image for the scanner: `python docker/openrecon/package.py IMAGE.tar --out FOLDER`.

The package is a zip of the image, as `docker save` wrote it, and of the manual as PDF, all three of one name. The
manual is manual.md and the parameters of the label.
"""

import argparse
import os
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

from label import label, package_name

HERE = Path(__file__).parent

A4 = (8.27, 11.69)  # inches
COLUMNS, ROWS = 92, 62  # characters and lines of a page


def manual() -> list[str]:
    """Lines of the manual, none longer than a page is wide."""
    found: list[str] = []
    for paragraph in (HERE / "manual.md").read_text(encoding="utf-8").split("\n\n"):
        found += [*textwrap.wrap(paragraph.lstrip("# "), COLUMNS), ""]
    for entry in label(gpu=False)["parameters"]:
        found += textwrap.wrap(told(entry), COLUMNS, initial_indent="  ", subsequent_indent="      ")
    return found


def told(entry: dict[str, Any]) -> str:
    """A parameter in words."""
    values = ", ".join(value["id"] for value in entry.get("values", []))
    if "minimum" in entry:
        values = f"{entry['minimum']} to {entry['maximum']}"
    information = entry.get("information", {}).get("en", "the reconstruction")
    default = {True: "on", False: "off"}.get(entry["default"]) if entry["type"] == "boolean" else entry["default"]
    return f"{entry['label']['en']} [{values or entry['type']}; {default}]: {information}"


def write_pdf(lines: list[str], path: Path) -> None:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    metadata = {"Title": package_name(), "CreationDate": None}
    with PdfPages(path, metadata=metadata) as pages:  # equal manuals are equal files
        for first in range(0, len(lines), ROWS):
            figure = Figure(figsize=A4)
            figure.text(0.08, 0.95, "\n".join(lines[first : first + ROWS]), va="top", family="monospace", size=8.5)
            pages.savefig(figure)


def package(image: Path, folder: Path) -> Path:
    """The zip, made beside its place and then put there."""
    folder.mkdir(parents=True, exist_ok=True)
    name = package_name()
    path, pdf = folder / f"{name}.zip", folder / f"{name}.pdf"
    write_pdf(manual(), pdf)
    partial = path.with_suffix(".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(image, f"{name}.tar")
        archive.write(pdf, pdf.name)
    os.replace(partial, path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="of `docker save`")
    parser.add_argument("--out", type=Path, default=Path("build"))
    args = parser.parse_args()
    if not args.image.is_file():
        print(f"{args.image} does not exist: give what `docker save` wrote", file=sys.stderr)
        return 2
    print(package(args.image, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
