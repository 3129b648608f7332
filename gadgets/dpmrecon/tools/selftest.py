"""`dpmrecon selftest`: is an image's place in the patient right, at this site, through every output?

An object has the letters L, A and H and a marker beside each, at known patient coordinates. It is scanned in several
orientations, in 2D and in 3D, and goes the whole way: acquisitions, coil maps, sampler, MRD image, DICOM and, where
nibabel is installed, NIfTI. The markers are found in the files alone, as a viewer finds them. They must lie within a
tenth of a voxel of their true place.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DpmreconError
from ..mrd.geometry import Plane, plane_of_partition
from ..options import out_folder
from ..simulation.phantom import Letters
from ..simulation.settings import SimulationSettings, VolumeSettings
from ..simulation.simulate import simulate
from ..simulation.slices import the_object

if TYPE_CHECKING:
    import torch

    from ..prior.checkpoint import Checkpoint

TOLERANCE = 0.1  # of a voxel, along rows, columns and slices

_SHARED: dict[str, Any] = {
    "phantom": "letters",
    "matrix": (75, 90),
    "fov_mm": (240.0, 252.0),
    "slice_thickness_mm": 4.0,
    "slice_gap_mm": 0.0,
    "n_slices": 7,
    "acceleration": 2,
    "n_coils": 4,
    "noise": 0.003,
}
_VOLUME: dict[str, Any] = {
    "phantom": "letters",
    "matrix": (50, 47),
    "fov_mm": (210.0, 206.8),
    "slice_thickness_mm": 4.6,
    "partitions": 44,
    "acceleration": 2,
    "partition_acceleration": 1,
    "n_coils": 4,
    "calibration_lines": 16,
    "noise": 0.003,
}
# rotations of the slices about x, y, z; nothing is symmetric
ORIENTATIONS: dict[str, dict[str, Any]] = {
    "axial oblique": {"rotation_deg": (18.0, -9.0, 12.0), "position_mm": (7.0, -5.0, 9.0)},
    "axial swapped phase": {
        "rotation_deg": (-14.0, 6.0, -8.0),
        "position_mm": (-6.0, 4.0, -7.0),
        "swap_phase": True,
        "matrix": (84, 73),
        "fov_mm": (252.0, 233.6),
    },
    "axial feet first": {
        "rotation_deg": (11.0, 172.0, 5.0),
        "position_mm": (5.0, 6.0, -11.0),
        "patient_position": "FFS",
        "interleaved": False,
    },
    "coronal": {"rotation_deg": (-78.0, 7.0, 5.0), "position_mm": (-5.0, 8.0, 4.0), "matrix": (80, 77)},
    "sagittal feet first": {
        "rotation_deg": (-83.0, 9.0, 101.0),
        "position_mm": (8.0, -4.0, 6.0),
        "patient_position": "FFP",
    },
    "Siemens's convention": {"rotation_deg": (9.0, 14.0, -11.0), "position_mm": (-4.0, 7.0, 5.0), "vendor": "SIEMENS"},
}
# volumes by their acquired plane; those that are not axial are reformatted too
VOLUMES: dict[str, dict[str, Any]] = {
    "volume, axial": {
        "rotation_deg": (12.0, -7.0, 9.0),
        "position_mm": (4.0, -3.0, 6.0),
        "slice_oversampling": 1.1,
        "acceleration": 1,
        "partition_acceleration": 2,
        "patient_position": "FFS",
    },
    "volume, sagittal": {
        "orientation": "sagittal",
        "rotation_deg": (-6.0, 5.0, 8.0),
        "position_mm": (-3.0, 5.0, 4.0),
        "partitions": 45,
        "partial_fourier": 0.8,
    },
    "volume, coronal": {
        "orientation": "coronal",
        "rotation_deg": (7.0, 6.0, -5.0),
        "position_mm": (5.0, 4.0, -6.0),
        "matrix": (48, 51),
        "fov_mm": (206.4, 209.1),
        "vendor": "SIEMENS",
    },
}


@dataclass(frozen=True)
class Finding:
    """One marker in one output. off: voxels it lies off its true place along (rows, columns, slices)."""

    orientation: str
    output: str
    letter: str
    off: tuple[float, float, float]

    @property
    def passed(self) -> bool:
        return max(abs(value) for value in self.off) <= TOLERANCE


def settings_of(orientation: str, **changes: Any) -> SimulationSettings:
    """What the scan of an orientation is simulated with."""
    if orientation in VOLUMES:
        return VolumeSettings(**{**_VOLUME, **VOLUMES[orientation], **changes})
    return SimulationSettings(**{**_SHARED, **ORIENTATIONS[orientation], **changes})


def folder_of(out: Path, orientation: str) -> Path:
    """Where an orientation's scan and images lie under the folder of the self-test."""
    return out / orientation.replace(",", "").replace(" ", "_")


def mrd_images(path: Path) -> list[tuple[Plane, np.ndarray]]:
    """Planes and magnitudes (rows, columns) of `image_1` in images.h5, one a partition."""
    from ..output.images_file import images_in

    return [
        (plane_of_partition(image.getHead(), image.data.shape, number), np.asarray(pixels))
        for image in images_in(path, 1)
        for number, pixels in enumerate(image.data[0])
    ]


def dicom_images(folder: Path, series: int = 0) -> list[tuple[Plane, np.ndarray]]:
    """The same of a folder's DICOM series, the acquired one first."""
    from ..dicom.viewer import read_series, values
    from ..mrd.geometry import plane_of_dicom

    return [(plane_of_dicom(file), values(file)) for file in read_series(folder)[series]]


def nifti_images(path: Path) -> list[tuple[Plane, np.ndarray]]:
    """The same of a NIfTI file, by its affine alone."""
    import nibabel

    file: Any = nibabel.load(path)
    voxels = np.asarray(file.dataobj)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ file.affine  # RAS to LPS
    across, down = np.linalg.norm(affine[:3, :2], axis=0)
    along_columns, along_rows = affine[:3, 0] / across, affine[:3, 1] / down
    firsts = [affine[:3, 3] + number * affine[:3, 2] for number in range(voxels.shape[2])]
    return [
        (Plane(first, along_columns, along_rows, (down, across)), voxels[:, :, number].T)
        for number, first in enumerate(firsts)
    ]


def find_markers(images: list[tuple[Plane, np.ndarray]], count: int = 3) -> np.ndarray:
    """Patient coordinates (count, 3) of the brightest spots, from a stack of images; LPS mm.

    Around each, a Gaussian of the marker's width moves until the signal under it is balanced, relative to the body's,
    which takes the coils' shading out: a linear fit around the marker.
    """
    points = np.concatenate([_voxels(plane, pixels.shape) for plane, pixels in images])
    signal = np.concatenate([pixels.ravel() for _, pixels in images]).astype(float)
    sigma = Letters.MARKER_SIGMA_MM
    found: list[np.ndarray] = []
    left = signal.copy()
    for _ in range(count):
        place = points[np.argmax(left)]
        near = np.linalg.norm(points - place, axis=1)
        left[near < 6 * sigma] = 0
        ring = (near > 3.5 * sigma) & (near < 5 * sigma)
        inside = near < 4 * sigma
        spot = points[inside]
        fit = np.linalg.lstsq(_affine(points[ring] - place), signal[ring], rcond=None)[0]
        contrast = signal[inside] / (_affine(spot - place) @ fit) - 1
        for _ in range(50):
            offset = spot - place
            weight = np.exp(-(offset**2).sum(1) / (2 * sigma**2)) * contrast
            step = 2 * (weight @ offset) / weight.sum()
            place = place + step
            if np.linalg.norm(step) < 1e-4:
                break
        found.append(place)
    return np.array(found)


def _affine(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])


def compare(
    orientation: str, output: str, images: list[tuple[Plane, np.ndarray]], settings: SimulationSettings
) -> list[Finding]:
    """Every marker's distance from its true place, in voxels; a marker that is missed is infinitely far off."""
    letters = the_object(settings)
    assert isinstance(letters, Letters)
    found = find_markers(images)
    plane = images[0][0]
    # a reformatted volume has another axis along the normal
    sizes = *settings.pixel_mm[::-1], settings.slice_thickness_mm + settings.slice_gap_mm
    step = sizes[int(np.argmax(np.abs(np.stack(settings.directions()) @ plane.normal)))]
    findings = []
    for letter, true in letters.markers.items():
        error = found[np.argmin(np.linalg.norm(found - true, axis=1))] - true
        if np.linalg.norm(error) > 3 * Letters.MARKER_SIGMA_MM:
            error = np.full(3, np.inf)
            off = (np.inf, np.inf, np.inf)
        else:
            down, across = plane.spacing_mm
            off = (error @ plane.along_rows / down, error @ plane.along_columns / across, error @ plane.normal / step)
        findings.append(Finding(orientation, output, letter, off))
    return findings


def selftest(
    out: Path, checkpoint: "Checkpoint", device: "torch.device", orientations: Iterable[str] | None = None
) -> list[Finding]:
    """Scan, reconstruct and measure orientations under the folder `out`; draws out/selftest.png.

    orientations: names of ORIENTATIONS and VOLUMES, all by default; checkpoint, device: as `replay` takes them.
    Raises DpmreconError where a step fails.
    """
    from ..dicom.write import DicomOptions
    from ..mrd.file import open_scan
    from ..mrd.receiving import Receiving
    from ..options import Options
    from ..output.images_file import Outputs, has_nibabel
    from ..output.writers import telling
    from ..recon.types import Sampling
    from ..replay import replay
    from ..results import Wanted

    name, sampler = checkpoint.kind.sampler(None)
    values = dict(checkpoint.card["sampling"][name])
    sampling = Sampling(name, sampler.settings_from({**values, "steps": 4}), 1, 0, 4, True)
    findings: list[Finding] = []
    folders: dict[str, Path] = {}
    for orientation in (*ORIENTATIONS, *VOLUMES) if orientations is None else orientations:
        settings = settings_of(orientation)
        folder = folders[orientation] = folder_of(out, orientation)
        with telling(out):
            folder.mkdir(parents=True, exist_ok=True)
        simulate(folder / "scan.h5", settings)
        with open_scan(folder / "scan.h5") as scan:
            outputs = Outputs(nifti=has_nibabel())
            reformat = "axial" if orientation in VOLUMES and settings.orientation != "axial" else None
            wanted, receiving = Wanted(outputs, DicomOptions(reformat=reformat)), Receiving.of(Options(), scan.header)
            report = replay(scan, folder, checkpoint, None, sampling, device, wanted=wanted, receiving=receiving)
        if report.exit_code:
            raise DpmreconError(
                f"{orientation}: not every slice came out of the model (exit code {report.exit_code} of replay): the "
                f"reasons are in {folder}/report.json, name another --model or --device"
            )
        findings += compare(orientation, "MRD", mrd_images(folder / "images.h5"), settings)
        findings += compare(orientation, "DICOM", dicom_images(folder / "dicom"), settings)
        if reformat is not None:
            findings += compare(orientation, f"DICOM {reformat}", dicom_images(folder / "dicom", 1), settings)
        if outputs.nifti:
            images = nifti_images(folder / "nifti/01_reconstruction.nii.gz")
            findings += compare(orientation, "NIfTI", images, settings)
    _draw(out / "selftest.png", folders)
    return findings


def _voxels(plane: Plane, shape: tuple[int, ...]) -> np.ndarray:
    """Patient coordinates (rows * columns, 3) of all voxels of an image."""
    down, across = plane.spacing_mm
    rows = np.arange(shape[0])[:, None, None] * down * plane.along_rows
    columns = np.arange(shape[1])[None, :, None] * across * plane.along_columns
    return (plane.first + rows + columns).reshape(-1, 3)


def _draw(path: Path, folders: dict[str, Path]) -> None:
    """For each orientation the slices of the DICOM series where the markers lie, with a circle at the true place."""
    from matplotlib.figure import Figure

    from ..dicom.viewer import read_series, show
    from ..mrd.geometry import plane_of_dicom

    figure = Figure(figsize=(3.0 * 3, 3.1 * len(folders)), facecolor="black")
    grid = figure.subplots(len(folders), 3, squeeze=False)
    for axes, (orientation, folder) in zip(grid, folders.items()):
        letters = the_object(settings_of(orientation))
        assert isinstance(letters, Letters)
        files = read_series(folder / "dicom")[0]
        for axis, (letter, place) in zip(axes, letters.markers.items()):
            planes = [plane_of_dicom(file) for file in files]
            off = [abs(plane.voxel(place)[2]) for plane in planes]
            nearest = int(np.argmin(off))
            row, column, _ = planes[nearest].voxel(place)
            show(axis, files[nearest], f"{orientation}: marker {letter}, image {nearest + 1}")
            axis.plot(column, row, "o", markersize=16, markerfacecolor="none", markeredgecolor="cyan")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=100, facecolor="black")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon selftest`."""
    parser.add_argument("--out", type=out_folder, required=True, help="folder for scans, images and selftest.png")
    parser.add_argument("--model", type=Path, help="checkpoint .safetensors (default: the one that ships)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ... (default: cpu)")


def run(args: argparse.Namespace) -> int:
    """`dpmrecon selftest`: 0 where every marker is within the tolerance, else 1."""
    from ..options import Options
    from ..recon.plan import load

    findings = selftest(args.out, *load(Options(model=args.model, device=args.device)))
    print(f"{'orientation':22} {'output':11} marker   voxels off along rows, columns, slices")
    for finding in findings:
        off = "  ".join(f"{value:+.3f}" for value in finding.off)
        verdict = "" if finding.passed else "   FAIL"
        print(f"{finding.orientation:22} {finding.output:11} {finding.letter:6}   {off}{verdict}")
    failed = [finding for finding in findings if not finding.passed]
    worst = max(abs(value) for finding in findings for value in finding.off)
    print(f"{args.out}/selftest.png")
    print(
        f"{'FAILED' if failed else 'passed'}: {len(findings) - len(failed)} of {len(findings)} markers within "
        f"{TOLERANCE} voxel of their place, the worst {worst:.3f} off"
    )
    return 1 if failed else 0
