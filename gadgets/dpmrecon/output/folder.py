"""The result folder of a replay: images.h5, report.json and preview.png."""

import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from .. import __version__
from ..errors import BadInputError
from ..mrd.collect import LostSlice
from ..mrd.header import Scan
from ..prior.checkpoint import Checkpoint
from ..recon.sample import Reconstruction, Sampling, data_residual
from .mrd_images import RESEARCH, to_recon_space
from .preview import write_preview

PREVIEW_ROWS = 6
ROOM = 1 << 16  # bytes that HDF5 needs at most beside the pixels and texts of an image
METHODS = ("zero-filled", "CG-SENSE", "DPM")
CONVENTIONAL = 3  # series index: image_3 in the file
# elements of an MRD header that tell who was scanned, where and when
_PERSONAL = (
    *("subjectInformation", "studyInformation", "institutionName", "stationName", "deviceSerialNumber", "seriesDate"),
    *("seriesTime", "seriesDescription", "seriesInstanceUIDRoot", "frameOfReferenceUID", "referencedImageSequence"),
)


@dataclass(frozen=True)
class Outputs:
    """conventional: keep the CG-SENSE image of every slice as a series of its own (image_3); anonymize: leave patient
    and study data out of the header of images.h5, and the file's name out of the report."""

    conventional: bool = False
    anonymize: bool = False


class ResultFolder:
    """Context manager: images are on disk as soon as they are added; report and preview follow at the end, also
    when the scan breaks off, and nothing of an earlier run stays. n_slices: how many are to come.

    truth, mask: .npy files (slices, rows, cols) of the recon space to score against (see `nrmse`); one slice may be
    (rows, cols), and a mask of one slice serves all. Raises BadInputError for files that do not fit the scan or
    where something cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        scan: Scan,
        checkpoint: Checkpoint,
        contrast: str | None,
        sampling: Sampling,
        outputs: Outputs,
        n_slices: int,
        truth: Path | None = None,
        mask: Path | None = None,
    ):
        self.folder, self.header, self.outputs, self.scan_file = folder, scan.header, outputs, scan.path
        self.xml = without_patient(scan.xml) if outputs.anonymize else scan.xml
        matrix = scan.header.encoding[0].reconSpace.matrixSize
        self.truth = None if truth is None else load_pictures(truth, (matrix.y, matrix.x))
        self.mask = None if mask is None else load_pictures(mask, (matrix.y, matrix.x)) > 0
        if self.mask is not None and (self.truth is None or len(self.mask) not in (1, len(self.truth))):
            raise BadInputError(f"mask {mask} needs a truth of as many slices: give --truth as well, or a mask of one")
        self.report: dict = {
            "scan": None if outputs.anonymize else scan.path.name,
            "package_version": __version__,
            "model_id": checkpoint.model_id,
            "contrast": contrast,
            "sampler": sampling.sampler,
            "mode": sampling.mode,
            "settings": vars(sampling.settings),
            "settings_source": sampling.source,
            "samples": sampling.samples,
            "seed": sampling.seed,
            "deadline": sampling.deadline,
            "notice": RESEARCH,
            "error": None,
            "slices": [],
        }
        self.rows: list[dict[str, np.ndarray]] = []
        self.titles: list[str] = []
        self.scores: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in METHODS}
        self.every = max(1, -(-n_slices // PREVIEW_ROWS))
        self.exit_code = 0

    def __enter__(self) -> "ResultFolder":
        self.started = time.perf_counter()
        path, dicom = self.folder / "images.h5", self.folder / "dicom"
        scan = self.scan_file.resolve()
        if {path.resolve(), dicom.resolve()} & {scan, *scan.parents}:
            raise BadInputError(f"the scan {self.scan_file} lies where the results go: choose another --out")
        if dicom.exists() and not (self.folder / "report.json").exists():
            raise BadInputError(f"{dicom} is there and not of an earlier replay: choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("images.h5", "preview.png", "report.json"):
                (self.folder / name).unlink(missing_ok=True)
            if dicom.exists():
                shutil.rmtree(dicom)
            _claim(path, ROOM + len(self.xml))
            path.unlink()
            self.dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
            self.dataset.write_xml_header(self.xml)
            self.dataset._file.flush()
        except OSError as error:
            raise BadInputError(f"cannot write to {self.folder} ({error}): choose another --out") from error
        return self

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> str:
        """Store one slice; returns the line that the screen shows for it."""
        if isinstance(item, LostSlice):
            self.exit_code = 4
            self.report["slices"].append({**vars(item.key), "missing": item.reason, "fallback": None})
            return f"slice {item.key.slice}: MISSING: {item.reason}"
        if self.outputs.conventional:
            images = [*images, _conventional(images[0], item, self.header)]
        try:
            for image in images:
                store(self.dataset, image)
        except (OSError, RuntimeError) as error:
            raise BadInputError(f"cannot write to {self.folder} ({error}): the slices before are kept") from error
        data = item.mapped.data
        assert data.calibration is not None  # else there were no maps
        self.report["slices"].append(
            {
                **vars(data.key),
                "fallback": item.fallback,
                "R": data.acceleration,
                "lines": data.n_lines_got,
                "coils": item.mapped.n_coils,
                "matrix": list(data.kspace.shape),
                "maps": {"calibration": list(data.calibration.shape)},
                "scale": item.mapped.scale,
                "sigma_n": data.sigma_n,
                "noise_source": data.noise_source,
                "residual": item.residual,
                "samples": item.samples,
                "steps": item.steps,
                "evaluations": item.evaluations,
                "seconds": item.seconds,
            }
        )
        if item.fallback is not None:
            self.exit_code = max(self.exit_code, 3)
        self._keep_pictures(item)
        seconds = sum(item.seconds.values())
        source = f"DPM, {item.drawn}" if item.fallback is None else f"CG-SENSE FALLBACK: {item.fallback}"
        return f"slice {data.key.slice}: {source}, residual {item.residual:.2f}, {seconds:.1f} s"

    def _keep_pictures(self, item: Reconstruction) -> None:
        key = item.mapped.data.key
        done = sum("missing" not in entry for entry in self.report["slices"])
        shown = (done - 1) % self.every == 0 and len(self.rows) < PREVIEW_ROWS
        truth = None if self.truth is None or key.slice >= len(self.truth) else self.truth[key.slice]
        if not shown and truth is None:
            return
        images = (item.mapped.zero_filled, item.mapped.conventional, item.image)
        pictures = {
            name: to_recon_space(image, self.header).abs().cpu().numpy() for name, image in zip(METHODS, images)
        }
        if truth is not None:
            for name, picture in pictures.items():
                self.scores[name].append((key.slice, picture))
        if shown:
            if item.spread is not None:
                pictures["std of samples x5"] = 5 * to_recon_space(item.spread, self.header).abs().cpu().numpy()
            if truth is not None:
                pictures["truth"] = truth * _factor(truth, pictures["DPM"])
                for name in METHODS:
                    fitted = pictures[name] * _factor(pictures[name], pictures["truth"])
                    pictures[f"error {name} x5"] = np.abs(fitted - pictures["truth"])
            self.rows.append(pictures)
            self.titles.append(f"slice {key.slice}{' FALLBACK' if item.fallback else ''}: ")

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        if failure is not None:
            reason = str(failure) or type(failure).__name__
            # the path may name the patient
            self.report["error"] = reason.replace(str(self.scan_file), "the scan") if self.outputs.anonymize else reason
        try:
            self._finish()
        except (OSError, RuntimeError) as error:
            if failure is None:
                raise BadInputError(
                    f"cannot write to {self.folder} ({error}): make room or choose another --out"
                ) from error
            # the first failure is the one to tell, and what it left is all there is

    def _finish(self) -> None:
        self.report["seconds"] = time.perf_counter() - self.started
        if self.scores["DPM"]:
            self.report["nrmse"] = {name: self._nrmse(found) for name, found in self.scores.items()}
            print("NRMSE:", ", ".join(f"{name} {found['mean']:.4f}" for name, found in self.report["nrmse"].items()))
        try:
            self.dataset.close()
        finally:
            (self.folder / "report.json").write_text(json.dumps(self.report, indent=1) + "\n")
        if self.rows:
            columns = set.intersection(*(set(row) for row in self.rows))
            rows = [{name: image for name, image in row.items() if name in columns} for row in self.rows]
            write_preview(self.folder / "preview.png", rows, self.titles)

    def _nrmse(self, found: list[tuple[int, np.ndarray]]) -> dict:
        assert self.truth is not None
        mask = self.mask if self.mask is not None else np.ones_like(self.truth, dtype=bool)
        per_slice = nrmse(
            np.stack([picture for _, picture in found]),
            np.stack([self.truth[index] for index, _ in found]),
            np.stack([mask[index if len(mask) > 1 else 0] for index, _ in found]),
        )
        return {"mean": float(np.mean(per_slice)), "slices": [float(value) for value in per_slice]}


def seconds_to_finish(n_slices: int, *, truth: bool) -> float:
    """About what preview, report and DICOM files take after the last slice: measured on a picture of one row."""
    row = {name: np.zeros((256, 256)) for name in (*METHODS, "std of samples x5")}
    write_preview(BytesIO(), [{name: image[:8, :8] for name, image in row.items()}], [""])  # what is set up once
    started = time.perf_counter()
    write_preview(BytesIO(), [row], [""])
    one = time.perf_counter() - started
    # a picture of something takes a fifth more, and with a truth there are twice as many columns; the two DICOM files
    # of a slice take a quarter of a row, and what writes them three rows to load
    return one * (1.2 * min(n_slices, PREVIEW_ROWS) * (2 if truth else 1) + n_slices / 4 + 3)


def store(dataset: ismrmrd.Dataset, image: ismrmrd.Image) -> None:
    """Append an image to its series (image_N) and see it on disk. Raises OSError or RuntimeError.

    A file that HDF5 cannot write to cannot be closed either and crashes the process, so the space is claimed first.
    """
    file = dataset._file
    _claim(Path(file.filename), file.id.get_filesize() + image.data.nbytes + len(image.attribute_string) + ROOM)
    dataset.append_image(f"image_{image.image_series_index}", image)
    file.flush()


def _claim(path: Path, size: int) -> None:
    """Make a file this long, on disk as well; what it holds stays."""
    with open(path, "ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _conventional(image: ismrmrd.Image, item: Reconstruction, header: Any) -> ismrmrd.Image:
    """The CG-SENSE image of a slice beside its reconstruction `image`, in the same scale and place."""
    meta = dict(image.meta)
    scale = 1 / float(meta.get("RescaleSlope", 1))
    magnitude = scale * to_recon_space(item.mapped.conventional, header).abs().cpu().numpy()
    head = ismrmrd.ImageHeader.from_buffer_copy(image.getHead())
    head.image_series_index = CONVENTIONAL
    found = ismrmrd.Image.from_array(magnitude[None, None].astype(np.float32), transpose=False)
    found.setHead(head)
    protocol = header.measurementInformation.protocolName if header.measurementInformation else None
    meta |= {
        "DataRole": "Conventional",
        "GADGETRON_DataRole": "Conventional",
        "SeriesDescription": f"{protocol or 'scan'} CG-SENSE RESEARCH",
        "GADGETRON_SeqDescription": "_CG-SENSE",
        "ImageComments": RESEARCH,
        "GADGETRON_ImageComment": RESEARCH,
        "ImageProcessingHistory": f"dpmrecon {__version__} CG-SENSE",
        "GADGETRON_ImageProcessingHistory": f"dpmrecon {__version__} CG-SENSE",
        "ImageType": "DERIVED\\PRIMARY\\OTHER\\CGSENSE",
        "dpmrecon_sampler": "cg-sense",
        "dpmrecon_residual": f"{data_residual(item.mapped, item.mapped.conventional):.4g}",
        "dpmrecon_fallback": "none",
    }
    found.attribute_string = ismrmrd.Meta(meta).serialize()
    return found


def without_patient(xml: bytes) -> bytes:
    """An MRD header without the elements that tell who was scanned, where and when; the rest byte for byte."""
    for name in _PERSONAL:
        pattern = rb"<((?:[\w.-]+:)?" + name.encode() + rb")\b[^>]*(?:/>|(?<!/)>.*?</\1\s*>)"
        xml = re.sub(pattern, b"", xml, flags=re.DOTALL)
    return xml


def nrmse(found: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """||a |found| - truth|| / ||truth|| inside the mask for each slice, one least-squares factor a for the scan."""
    factor = _factor(np.abs(found)[mask], truth[mask])
    errors = [(factor * np.abs(f) - t)[m] for f, t, m in zip(found, truth, mask)]
    return np.array([np.linalg.norm(e) / np.linalg.norm(t[m]) for e, t, m in zip(errors, truth, mask)])


def _factor(image: np.ndarray, target: np.ndarray) -> float:
    """The least-squares factor that takes `image` to `target`."""
    return float((image * target).sum() / max((image * image).sum(), 1e-30))


def load_pictures(path: Path, matrix: tuple[int, int]) -> np.ndarray:
    """A .npy file of real numbers as (slices, *matrix); one slice may be without the first axis."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"{path} is not a readable .npy file ({error})") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise BadInputError(f"{path} holds no single array of real numbers: a .npy file (slices, rows, cols) is needed")
    array = found[None] if found.ndim == 2 else found
    if array.ndim != 3 or array.shape[1:] != matrix:
        raise BadInputError(
            f"{path} is {found.shape} and the scan's images are {matrix}: give (slices, rows, cols) of that matrix"
        )
    return array
