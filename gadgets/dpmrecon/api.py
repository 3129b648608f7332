"""The front door for Python: arrays, or a scan's file, to images. What is public is listed in `dpmrecon.__all__`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch

from .arrays import calibration_of, estimated_level, maps_of, slice_of_arrays, voxel_of, with_noise_doubt
from .data import LostSlice, SliceKey, Volume
from .device import device_of
from .errors import BadInputError
from .mrd.collect import slices
from .mrd.completeness import FEWEST_CALIBRATION_LINES
from .mrd.header import acceleration, n_partitions
from .mrd.receiving import Receiving, open_as
from .mrd.scan import Scan
from .options import Options, checked, path_of, plain, shown
from .output.mrd_images import to_recon_space
from .physics import coil_maps
from .physics.volume_maps import packed_maps
from .prior.checkpoint import Checkpoint, load_checkpoint
from .recon.conventional import mapped_slice
from .recon.plan import contrast_of, sampling_of
from .recon.prepare import with_coil_maps
from .recon.repairs import despiked
from .recon.stream import sampled
from .recon.types import Reconstruction
from .recon.volumes import mapped_volume

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Model = Checkpoint | str | PathLike | None


@dataclass(frozen=True)
class Result:
    """One reconstructed slice, or volume: there every array has the partitions before the rows.

    Attributes
    ----------
    image : (rows, cols) complex64
        The mean of the posterior samples, of mode uncertainty the image of mode fast, phase included, in the units of
        the k-space; on the fallback the conventional image. None where the slice is missing.
    std : (rows, cols) float32 or None
        Standard deviation of the samples' magnitude, None with fewer than two.
    conventional : (rows, cols) complex64
        The CG-SENSE image.
    residual : float
        ||A x - y|| over what the noise alone leaves: about 1 for an image that fits its data.
    fallback : str or None
        Why the image is the conventional one; None where it is the model's.
    samples : (samples, rows, cols) complex64 or None
        The samples themselves, with `keep_samples`.
    key : SliceKey
        Slice, contrast, phase, set, repetition and average, as a scan counts them.
    missing : str or None
        Why a scan's slice has no image; None where it has one.
    remarks : tuple of str
        What to know before the image is used, such as samples that were left out.
    trusted : bool
        False where the image, the conventional one too, contradicts its data beyond use, or is far from what sound
        scans of its contrast give.
    verdict : str
        trusted, or "caution: " or "not trusted: " with the first reason.
    """

    image: Any
    std: Any
    conventional: Any
    residual: float
    fallback: str | None
    samples: Any
    key: SliceKey = SliceKey(0)
    missing: str | None = None
    remarks: tuple[str, ...] = ()
    trusted: bool = True
    verdict: str = "trusted"


def load_model(
    model: str | PathLike | None = None, device: str | None = None, prior: Checkpoint | None = None
) -> Checkpoint:
    """Load a model once, for many calls of `reconstruct`.

    Parameters
    ----------
    model : path, optional
        A .safetensors file with its card beside it, or one-step or latent; None is the one that ships.
    device : str, optional
        "cpu", "cuda", "cuda:1" ...; None is cuda where there is one.
    prior : Checkpoint, optional
        For one-step: what makes its evaluations after the first, such as a site's own model; None is the one that
        ships.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        The file is missing, damaged or of another format.
    BadInputError
        The device cannot be used.
    """
    if prior is not None and not isinstance(prior, Checkpoint):
        raise BadInputError(f"prior is {shown(prior)}: give what load_model gave")
    return load_checkpoint(None if model is None else path_of("model", model), device_of(device), prior)


def estimate_coil_maps(
    calibration: Array,
    shape: tuple[int, int],
    *,
    kernel: int | None = None,
    threshold: float = 0.02,
    crop: float = 0.9,
    max_calibration: int = 24,
) -> Array:
    """ESPIRiT coil maps (Uecker et al., Magnetic Resonance in Medicine 71:990, 2014).

    Parameters
    ----------
    calibration : (n_coils, lines, samples) complex
        Fully sampled k-space of the image's field of view, best pre-whitened; index N//2 is the centre.
    shape : (rows, cols)
        Of the image.
    kernel : int, optional
        Size of the k-space kernel; None is 6, and less along an axis with fewer than 13 lines.
    threshold : float
        Share of the largest singular value from which on a singular vector belongs to the signal.
    crop : float
        Pixels whose largest eigenvalue is smaller have no coil maps; .6 to 1.
    max_calibration : int
        At most so many lines and samples are used, those in the middle.

    Returns
    -------
    (n_coils, rows, cols) complex64, as `calibration` numpy or torch
        Sum over coils of |s|^2 is 1 on the head and 0 outside it.

    Raises
    ------
    BadInputError
        The calibration is too small, not finite or not complex, or has lines of zeros; an argument is out of range.
    """
    given, size = calibration_of(calibration), [plain(n) for n in shape] if np.ndim(shape) == 1 else []
    if len(size) != 2 or not all(isinstance(n, int) for n in size):
        raise BadInputError(f"shape is {shape!r}: (rows, cols) of the image, whole numbers, are needed")
    for name, number in (("kernel", plain(kernel)), ("max_calibration", plain(max_calibration))):
        if number is not None and not isinstance(number, int):
            raise BadInputError(f"{name} is {shown(number)}: give a whole number")
    for name, number in (("threshold", plain(threshold)), ("crop", plain(crop))):
        if not isinstance(number, int | float):
            raise BadInputError(f"{name} is {shown(number)}: give a number")
    maps = coil_maps.estimate_coil_maps(
        given, (size[0], size[1]), kernel=kernel, threshold=threshold, crop=crop, max_calibration=max_calibration
    )
    return _like(maps, calibration)


def reconstruct(
    kspace: Array,
    maps: Array | None = None,
    mask: Array | None = None,
    *,
    calibration: Array | None = None,
    noise_std: float | None = None,
    voxel_mm: tuple[float, float, float] | None = None,
    model: Model = None,
    contrast: str | None = None,
    mode: str = "fast",
    steps: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    fallback: bool = True,
    gate: str = "warn",
    adapt: bool = False,
    keep_samples: bool = False,
) -> Result:
    """Reconstruct one slice, or one volume, from its undersampled multi-coil k-space.

    k-space and images are linked by the centred orthonormal FFT: index N//2 of every axis is the origin on both sides.

    Parameters
    ----------
    kspace : (n_coils, rows, cols) or (n_coils, partitions, rows, cols) complex
        Zero where not acquired; partitions and rows are phase encodings, cols readout samples without oversampling.
        Best pre-whitened: noise of equal size and no correlation in all coils.
    maps : complex, of the shape of `kspace`, optional
        Coil maps with sum |s|^2 of 1 on the head and 0 outside it; None estimates them.
    mask : (rows, cols) or (rows,), of a volume (partitions, rows, cols) or (partitions, rows), optional
        1 where k-space was acquired; None takes it from the k-space. Every line of a volume has the same columns.
        Zeros, and lines that hold nothing but rounding, are not acquired, and a remark tells of those.
    calibration : (n_coils, lines, samples) or (n_coils, partitions, lines, samples) complex, optional
        Fully sampled lines of the image's field of view to estimate coil maps from, no more along any axis than the
        k-space has; None takes its fully sampled centre. Where the columns are those of the k-space and the lines are
        shown to be the same data, they are used as such too.
    voxel_mm : (float, float, float), optional
        Of a volume, along partitions, rows and cols: the model is shown planes of nearly square pixels. None is a cube.
    noise_std : float, optional
        Standard deviation of the noise in one real channel of the k-space; None estimates it. A remark tells where it
        is off by a factor of 3 or more.
    model : Checkpoint or path, optional
        What `load_model` gave, or a file; None is the one that ships.
    contrast : str, optional
        flair, t1, t2, dwi or swi; None is the unlabelled prior.
    mode : "fast" or "uncertainty"
        The best image soonest, or many samples whose spread tells the error.
    steps, samples : int, optional
        Evaluations of the network a sample, and samples; None is the model's own.
    seed : int
        Equal seeds give equal images.
    device : str, optional
        "cpu", "cuda" ...; None is that of a loaded model, else cuda where there is one.
    fallback : bool
        Where the model fails, return the CG-SENSE image, and say why; False raises DpmreconError.
    gate : str
        Ask whether prior and data agree: "off", "warn" or "fallback", which gives the CG-SENSE image where an image is
        not to be trusted.
    adapt : bool
        Fit the prior to the scan first: slices alone. A remark tells what became of it.
    keep_samples : bool
        Return the samples as well.

    Returns
    -------
    Result
        Arrays are numpy or torch, as `kspace`.

    Raises
    ------
    BadInputError
        Shapes, types or values that cannot be used, in one sentence.
    DpmreconError
        The model fails and `fallback` is False.
    """
    checkpoint, where = _loaded(model, device)
    data = slice_of_arrays(kspace, mask, calibration, noise_std)
    if isinstance(data, Volume):
        data = replace(data, voxel_mm=voxel_of(voxel_mm))
    elif voxel_mm is not None:
        raise BadInputError("voxel_mm is of a volume, and the k-space is one slice's: leave it out")
    checkpoint = checkpoint.of_scan(volume=isinstance(data, Volume))
    options = _options(
        contrast=contrast, mode=mode, steps=steps, samples=samples, seed=seed, fallback=fallback, gate=gate, adapt=adapt
    )
    label = contrast_of(options, checkpoint, None)
    sampling = sampling_of(
        options, checkpoint, where, label, data.acceleration, volume=isinstance(data, Volume), keep_samples=keep_samples
    )
    level = None if noise_std is None else estimated_level(data)  # a volume's k-space is used up
    if maps is None:
        if data.calibration is None:
            raise BadInputError(
                f"the k-space has no fully sampled centre of {FEWEST_CALIBRATION_LINES} lines or more: give "
                "`calibration` or `maps`"
            )
        (mapped,) = with_coil_maps([data], where, label)
    elif isinstance(data, Volume):
        mapped = mapped_volume(despiked(data), packed_maps(maps_of(maps, data).to(where)), {})
    else:
        mapped = mapped_slice(despiked(data), maps_of(maps, data).to(where), {})
    if isinstance(mapped, LostSlice):
        raise BadInputError(f"the slice cannot be reconstructed: {mapped.reason}")
    (item,) = sampled([mapped], checkpoint, label, sampling)
    assert isinstance(item, Reconstruction)
    return _result(item if level is None else with_noise_doubt(item, level), kspace)


def reconstruct_scan(
    scan: Scan | str | PathLike,
    *,
    model: Model = None,
    contrast: str | None = None,
    mode: str = "fast",
    steps: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    fallback: bool = True,
    gate: str = "warn",
    adapt: bool = False,
    keep_samples: bool = False,
    combine_averages: bool = False,
    conjugate: str = "auto",
    noise: str | PathLike | None = None,
    coils: str | None = None,
    ignore_flags: str | None = None,
    group: str | None = None,
    header_values: str | None = None,
) -> Iterator[Result]:
    """Reconstruct an ISMRMRD scan slice by slice, as `dpmrecon replay` does; nothing is written.

    Parameters
    ----------
    scan : Scan or path
        What `open_scan` gave, or a file.
    contrast : str, optional
        None takes it from the protocol's name, as far as the model knows it.
    combine_averages : bool
        One image of all averages.
    conjugate, noise, coils, ignore_flags, group, header_values
        How the lines are taken, as the options of `dpmrecon replay`; header_values is its `--set`. The last two and
        flags are of the opening: with an open Scan they are refused.
    model, mode, steps, samples, seed, device, fallback, gate, adapt, keep_samples
        See `reconstruct`.

    Yields
    ------
    Result
        numpy, on the grid that the header's recon space tells. A slice that is incomplete has no image, and its
        `missing` says why.

    Raises
    ------
    BadInputError
        The scan cannot be used, in one sentence.
    DpmreconError
        The model fails and `fallback` is False.
    """
    checkpoint, where = _loaded(model, device)
    options = _options(
        contrast=contrast,
        mode=mode,
        steps=steps,
        samples=samples,
        seed=seed,
        fallback=fallback,
        gate=gate,
        adapt=adapt,
        conjugate=conjugate,
        noise=None if noise is None else path_of("noise", noise),
        coils=coils,
        ignore_flags=ignore_flags,
        group=group,
        set=header_values,
    )
    if isinstance(scan, AbstractContextManager) and not isinstance(scan, Scan | PathLike):
        raise BadInputError("scan is what open_scan gave, and not open: `with open_scan(path) as scan` opens it")
    if isinstance(scan, Scan):
        for name, value in (("ignore_flags", ignore_flags), ("group", group), ("header_values", header_values)):
            if value is not None:
                raise BadInputError(f"{name} is of the opening and the scan is open already: give the file's path")
    with ExitStack() as stack:
        opened = scan if isinstance(scan, Scan) else stack.enter_context(open_as(scan, options))
        header = opened.header
        checkpoint = checkpoint.of_scan(volume=n_partitions(header) > 1)
        label = contrast_of(options, checkpoint, header)
        sampling = sampling_of(
            options,
            checkpoint,
            where,
            label,
            acceleration(header),
            volume=n_partitions(header) > 1,
            keep_samples=keep_samples,
        )
        stream: Iterator[Any] = slices(
            opened.acquisitions(),
            header,
            combine_averages=combine_averages,
            receiving=Receiving.of(options, header),
            log=opened.log,
        )
        for item in sampled(with_coil_maps(stream, where, label), checkpoint, label, sampling):
            if isinstance(item, LostSlice):
                yield Result(None, None, None, float("nan"), None, None, item.key, item.reason)
            else:
                yield _result(item, np.empty(0), lambda image: to_recon_space(image, header))


def _options(*, fallback: bool, **given: Any) -> Options:
    fallback = plain(fallback)
    if not isinstance(fallback, bool):
        raise BadInputError(f"fallback is {shown(fallback)}: give True or False")
    return checked(Options(fallback="on" if fallback else "off", **given))


def _loaded(model: Model, device: str | None) -> tuple[Checkpoint, torch.device]:
    if not isinstance(model, Checkpoint):
        model = load_model(model, device)
    elif device is not None and device_of(device) != model.model.device:
        raise BadInputError(
            f"the model is on {model.model.device} and device is '{device}': load it there, or leave it"
        )
    return model, model.model.device


def _result(item: Reconstruction, like: Any, placed: Any = lambda image: image) -> Result:
    """placed: takes an image to the grid that is wanted."""
    mapped, phase = item.mapped, item.mapped.phase
    draws = None if item.draws is None else torch.stack([placed(draw * phase) for draw in item.draws])
    return Result(
        _like(placed(item.image * phase), like),
        None if item.spread is None else _like(placed(item.spread).abs(), like),
        _like(placed(mapped.model.combined(mapped.conventional) * phase), like),
        item.residual,
        item.fallback,
        None if draws is None else _like(draws, like),
        item.key,
        remarks=item.remarks if item.adaptation is None else (*item.remarks, item.adaptation),
        trusted=item.trusted,
        verdict=item.verdict,
    )


def _like(tensor: torch.Tensor, array: Any) -> Any:
    """The tensor as numpy, or on the device of a torch tensor."""
    return tensor.to(array.device) if isinstance(array, torch.Tensor) else tensor.cpu().numpy()
