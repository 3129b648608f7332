"""Readers of measured multi-coil k-space: fastMRI files and a hospital's ISMRMRD scans. The phase is measured; from a
hospital's scan the smooth part is off, as in a reconstruction."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from dpmrecon.data import LostSlice, Slice
from dpmrecon.data import Volume as DataVolume
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.diffusion import images_counter, weightings_of
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import encoded_grid, line_limits, n_partitions, read_header, view_mm, view_pixels, voxel_mm
from dpmrecon.mrd.receiving import Receiving
from dpmrecon.options import Options
from dpmrecon.output.mrd_images import to_recon_space
from dpmrecon.physics.coil_maps import estimate_coil_maps
from dpmrecon.physics.fourier import to_image, without_oversampling
from dpmrecon.physics.noise import whitening
from dpmrecon.prior.checkpoint import Checkpoint, load_checkpoint
from dpmrecon.recon.plan import sampling_of
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedSlice, Reconstruction

from .items import Fault, Item, Volume

CPU = torch.device("cpu")
# Beyond this acceleration a conventional image is no reference
LARGEST_ACCELERATION = 2.5
# Share of lines, and of samples, at either end that hold noise alone
CORNER = 0.1
# Lines on one side over those on the other: below, partial Fourier
SYMMETRIC = 0.8


def read_fastmri(item: Item) -> tuple[list[Volume], list[Fault]]:
    """A fastMRI multi-coil brain file to combined slices with phase, at the recon matrix.

    The file: `kspace` (slices, n_coils, readout, lines) complex64 with the readout oversampled 2x and lines that were
    not acquired zero; `ismrmrd_header`, the XML; attributes acquisition (AXT1, AXT1PRE, AXT1POST, AXT2, AXFLAIR) and
    patient_id. Per slice: whitening by the noise in the corners of k-space, as no noise measurement comes with the
    files; readout oversampling removed; ESPIRiT maps of the central 24x24 samples; x = sum conj(s) F^H y; cropped to
    the recon field of view; zero-filled (or cropped) in k-space to the recon matrix. Rows of the result are lines.

    The last slices (option drop_last) are left out (the source paper names no number): at the top of
    the head there is little but air and noise, which the scale rule would blow up; 5 of the usual 16.

    No real fastMRI file could be had. NOT CHECKED on one: (1) that slices run from the neck upwards in every file; (2)
    that the corners of k-space hold noise alone, without a filter; (3) files with fewer lines than the recon matrix,
    and phase oversampling as vendors write it: the header's fields of view are trusted; (4) speed on files of 16
    slices, 20 coils, 640x320.

    Raises BadInputError for single-coil, undersampled or incomplete files.
    """
    (path,) = item.files
    with h5py.File(path, "r") as file:
        if "mask" in file:
            raise BadInputError("it is undersampled (it holds a mask); only fully sampled files can be references")
        header = read_header(np.ravel(file["ismrmrd_header"][()])[0])
        kspace = file["kspace"]
        if kspace.ndim != 4:
            raise BadInputError(f"its kspace has shape {kspace.shape}; (slices, n_coils, readout, lines) is needed")
        n_slices, _, n_samples, n_lines = kspace.shape
        encoded = header.encoding[0].encodedSpace.matrixSize
        if n_samples != encoded.x:
            raise BadInputError(f"its readouts have {n_samples} samples where the header announces {encoded.x}")
        kept = n_slices - item.options["drop_last"]
        if kept < 1:
            raise BadInputError(
                f"it has {n_slices} slices, of which the last {item.options['drop_last']} are left out; give a smaller "
                "--drop-last"
            )
        first, end = _acquired_lines(kspace, header)
        _, cols = encoded_grid(header)
        encoded.y = n_lines  # zeros beyond the encoded matrix make pixels smaller and leave the field of view
        whitener = whitening(_corner_noise(kspace, first, end), 1.0)
        images, faults = [], []
        for number in range(kept):
            data = torch.from_numpy(kspace[number]).to(torch.complex64).transpose(-1, -2)
            data = torch.tensordot(whitener, without_oversampling(data, cols), dims=1)
            try:
                if not bool(torch.isfinite(torch.view_as_real(data)).all()):
                    raise BadInputError("its k-space holds NaN or infinite values")
                maps = estimate_coil_maps(data, (n_lines, cols))
            except BadInputError as error:
                faults.append(Fault(str(path), f"slice {number} is left out: {error}"))
                continue
            images.append(to_recon_space((maps.conj() * to_image(data)).sum(0), header).numpy())
    if not images:
        raise BadInputError(f"none of its {kept} slices can be used; the first: {faults[0].reason}")
    (x, y, z), matrix = view_mm(header), header.encoding[0].reconSpace.matrixSize
    voxel = z / max(matrix.z, 1), y / matrix.y, x / matrix.x
    sides = sorted((n_lines // 2 - first, end - n_lines // 2))
    reference = "fully sampled" if sides[0] >= SYMMETRIC * sides[1] else "fully sampled but for partial Fourier"
    return [Volume(item.name, np.stack(images), voxel, reference, coherent=False)], faults


def _acquired_lines(kspace: Any, header: Any) -> tuple[int, int]:
    """First and end of the lines that came: adjacent, and all that the limits announce."""
    n_samples, n_lines = kspace.shape[2:]
    held = np.flatnonzero((kspace[0, :, n_samples // 2] != 0).any(0))
    if not len(held):
        raise BadInputError("its k-space is zero")
    first, end = int(held[0]), int(held[-1]) + 1
    limits = line_limits(header)
    announced = min(limits.maximum - limits.minimum + 1, n_lines)
    if len(held) < max(end - first, announced) or not first <= n_lines // 2 < end:
        raise BadInputError(
            f"it holds {len(held)} lines between {first} and {end - 1} where the header announces {announced}; only "
            "fully sampled files can be references"
        )
    return first, end


def _corner_noise(kspace: Any, first: int, end: int) -> list[np.ndarray]:
    """The outermost samples of the outermost lines of all slices, (n_coils, n) each."""
    n_samples = kspace.shape[2]
    samples, lines = max(1, round(CORNER * n_samples)), max(1, round(CORNER * (end - first)))
    corners = [
        kspace[:, :, rows, columns]
        for rows in (slice(0, samples), slice(n_samples - samples, n_samples))
        for columns in (slice(first, first + lines), slice(end - lines, end))
    ]
    return [np.ascontiguousarray(corner.swapaxes(0, 1)).reshape(kspace.shape[1], -1) for corner in corners]


def read_ismrmrd(item: Item) -> tuple[list[Volume], list[Fault]]:
    """A hospital's scan to images on the encoded grid, as in a reconstruction. Each repetition, set and phase is a
    volume: diffusion weightings may be counted so, without a word of it in the header.

    Fully sampled scans are combined with the maps; scans with R up to LARGEST_ACCELERATION become CG-SENSE images
    ("SENSE R=2"), as in the source paper's clinical data, and so do shots with a phase each; with the option `prior`,
    all become the images that the product makes with that model by default. The grid is the one on which the sampler
    will work: no zero-filling to the recon matrix. Averages are averaged; the counter `contrast`, and the one of
    b-values, make volumes of their own. Raises BadInputError for a scan that is accelerated more.
    """
    (path,) = item.files
    found: dict[tuple[int, int], dict[tuple[int, ...], np.ndarray]] = {}
    faults, references = [], set()
    prior = load_checkpoint(Path(item.options["prior"]), CPU) if "prior" in item.options else None
    with open_scan(path) as scan:
        header = scan.header
        receiving = Receiving.of(Options(), header)
        counter = images_counter(header) if weightings_of(header) else None
        stream = slices(scan.acquisitions(), header, combine_averages=True, receiving=receiving)
        for mapped in with_coil_maps(_usable(stream), CPU, item.contrast):
            if isinstance(mapped, LostSlice):
                faults.append(Fault(str(path), f"slice {mapped.key.slice} is left out: {mapped.reason}"))
                continue
            shots = mapped.data.shots is not None  # which fill k-space together, but not with one image
            full = bool(mapped.data.mask.amax(-1).all()) and not shots
            accelerated = mapped.data.acceleration > 1
            references.add(
                f"image by {prior.model_id}" if prior
                else "fully sampled" if full
                else f"SENSE R={mapped.data.acceleration:g}" if accelerated
                else "SENSE of shots with a phase each" if shots
                else "fully sampled but for partial Fourier"
            )  # fmt: skip
            if prior:
                image = default_image(mapped, prior, item.contrast)
            else:
                image = mapped.model.combined(mapped.zero_filled if full else mapped.conventional)
            key = mapped.data.key
            place = (key.repetition, key.set, key.phase, key.slice)
            weighting = 0 if counter in (None, "contrast") else getattr(key, str(counter))
            found.setdefault((key.contrast, weighting), {})[place] = image.numpy()
    if not found:
        raise BadInputError(f"none of its slices can be used; the first: {faults[0].reason}")
    reference = ", ".join(sorted(references))
    three_d = n_partitions(header) > 1
    encoded, view = header.encoding[0].encodedSpace.fieldOfView_mm, view_mm(header)
    rows = next(iter(next(iter(found.values())).values())).shape[-2]
    voxel = voxel_mm(header) if three_d else (view[2], encoded.y / rows, view[0] / view_pixels(header)[-1])
    volumes = []
    several = [len({kind[place] for kind in found}) > 1 for place in (0, 1)]
    for kind, images in sorted(found.items()):
        told = [f"_{what}{number}" for what, number, tell in zip(("contrast", counter), kind, several) if tell]
        name = "".join([item.name, *told])
        sets: dict[tuple[int, ...], list[np.ndarray]] = {}
        for of_image in sorted(images):
            sets.setdefault(of_image[:-1], []).append(images[of_image])
        stacks = [own[0] if three_d else np.stack(own) for own in sets.values()]
        names = [name] if len(stacks) == 1 else [f"{name}_repetition{n}" for n in range(len(stacks))]
        for own, stack in zip(names, stacks):
            volumes.append(Volume(own, stack, voxel, reference, coherent=three_d))
    return volumes, faults


def default_image(mapped: MappedSlice, prior: Checkpoint, contrast: str) -> torch.Tensor:
    """As the product makes it, without the smooth phase."""
    is_volume = isinstance(mapped.data, DataVolume)
    prior = prior.of_scan(volume=is_volume)
    label = contrast if contrast in prior.model.labels else None
    how = sampling_of(Options(), prior, CPU, label, mapped.data.acceleration, volume=is_volume)
    (found,) = sampled([mapped], prior, label, how)
    assert isinstance(found, Reconstruction)
    return found.image


def _usable(stream: Iterable[Slice | LostSlice]) -> Iterator[Slice | LostSlice]:
    for data in stream:
        if isinstance(data, Slice) and data.acceleration > LARGEST_ACCELERATION:
            raise BadInputError(
                f"it is accelerated R={data.acceleration:g}; references need full sampling or R up to "
                f"{LARGEST_ACCELERATION:g}: leave it out"
            )
        yield data
