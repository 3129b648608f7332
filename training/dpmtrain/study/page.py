"""`dpmtrain study page`: the folder that `study make` wrote opens in a browser, without a network.

A page that was opened from a file may load scripts and nothing else. So each volume is a script that holds a NIfTI
file. It is not compressed: how far images can be compressed tells their arm.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dpmrecon.errors import BadInputError
from dpmrecon.files import from_json
from tqdm import tqdm

from ..files import writing
from .blind import BRIGHT, LONG_AGO, affine, read_series

NIIVUE = "@niivue/niivue@0.69.0"
SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
PAGE = Path(__file__).parent / "page"


def page(study: Path, viewer: Path | None) -> None:
    """STUDY/index.html and what it needs. viewer: the package's .tgz; None to have npm fetch it.

    Raises BadInputError where the folder is no study, or the viewer cannot be had.
    """
    try:
        told = from_json((study / "study.json").read_text())
        numbers = sorted(told["orders"][0])
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"{study} holds no study ({error}): give the folder that `study make` wrote") from error
    script = viewer_script(viewer)
    with writing(study / "index.html"):
        (study / "niivue.umd.js").write_bytes(script)
        for name in ("index.html", "style.css", "reader.js", "niivue_license.txt"):
            shutil.copyfile(PAGE / name, study / name)
        (study / "study.js").write_text(f"const STUDY = {json.dumps({**told, 'window': BRIGHT})};\n")
        (study / "volumes").mkdir(exist_ok=True)
        for number in tqdm(numbers, desc="volumes"):
            for index, contrast in enumerate(told["contrasts"], 1):
                text = volume(study / "dicom" / f"set{number:03d}" / f"{index}_{contrast}")
                (study / "volumes" / f"set{number:03d}_{index}.js").write_text(f'volume({index}, "{text}");\n')
        for path in study.rglob("*"):
            os.utime(path, (LONG_AGO, LONG_AGO))
    print(f"Open {study / 'index.html'} in a browser; the folder may be copied anywhere.")


def volume(folder: Path) -> str:
    """A blinded series as a NIfTI file in base64."""
    import nibabel
    import numpy as np

    series = read_series(folder)
    image = nibabel.Nifti1Image(
        series.pixels.transpose(2, 1, 0).astype(np.int16), affine(series.planes, series.thickness_mm)
    )
    image.header.set_xyzt_units("mm")
    return base64.b64encode(image.to_bytes()).decode()


def viewer_script(package: Path | None) -> bytes:
    """NiiVue's script for pages, of the very release that was looked at. Raises BadInputError where it is not to be
    had."""
    with tempfile.TemporaryDirectory() as folder:
        path = package or _fetched(Path(folder))
        try:
            content = path.read_bytes()
            found = base64.b64encode(hashlib.sha512(content).digest()).decode()
            if found != SHA512:
                raise BadInputError(f"{path} is not {NIIVUE}, by its SHA-512: give what `npm pack {NIIVUE}` makes")
            with tarfile.open(path) as archive:
                script = archive.extractfile("package/dist/niivue.umd.js")
                assert script is not None
                return script.read()
        except OSError as error:
            raise BadInputError(f"{path} cannot be read ({error}): give what `npm pack {NIIVUE}` makes") from error


def _fetched(folder: Path) -> Path:
    try:
        done = subprocess.run(["npm", "pack", NIIVUE], cwd=folder, capture_output=True, text=True, timeout=120)
        failure = (done.stderr.strip().splitlines() or ["npm failed"])[0] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    found = list(folder.glob("*.tgz"))
    if failure or not found:
        raise BadInputError(
            f"the viewer {NIIVUE} could not be fetched ({failure or 'npm packed nothing'}): run `npm pack {NIIVUE}` "
            "where there is a network, and give its file as --viewer"
        )
    return found[0]
