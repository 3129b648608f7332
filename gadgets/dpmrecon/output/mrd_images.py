"""From reconstructions to ISMRMRD images: recon space, headers and meta."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
import torch

from ..data import LostSlice, SliceKey
from ..mrd.header import Header, n_partitions, view_mm, view_pixels
from ..mrd.lines import LineHeader
from ..physics.fourier import crop_or_pad, to_image, to_kspace
from ..recon.provenance import Provenance
from ..recon.types import Reconstruction
from .weighting import Weighting, weighting_comment

RESEARCH = "RESEARCH: not for diagnostic use"
# series, image_1 and so on; 3: conventional, 4, 5, 11: maps of diffusion, 8 to 10: of SWI
RECONSTRUCTION, SPREAD, PHASE, COMPLEX = 1, 2, 6, 7
# of a series' first slice, the 99th percentile: others may be 30 times as bright
BRIGHT = 1000.0
# standard deviations of noise that the scale has at least: a first slice above the head holds noise alone (about 3),
# a head of SNR 5 has 7.7
HEAD = 7.5
# of phase in radians: scale, and a window that shows a whole turn
MRAD = {"GADGETRON_ScaleRatio": "1", "RescaleSlope": "1000", "RescaleIntercept": "0", "RescaleType": "mrad"}
TURN = (0, 7)
THICKNESS = "dpmrecon_thickness_mm"  # in an image's meta: of its slices, where it is not their distance
COUNTERS = ("contrast", "set", "phase", "repetition", "average")  # set images of one place apart, the last first
_COUNTERS = ("slice", "contrast", "phase", "set", "repetition", "average")  # the first counts fastest


def to_recon_space(image: torch.Tensor, header: Header) -> torch.Tensor:
    """([partitions,] rows, cols), complex or real, of the encoded matrix to the recon space's view and matrix.

    The field of view is cropped (or padded) in the image, partitions' oversampling among it; the matrix is reached by
    zero-filling (or cropping) k-space, which makes a complex image of a real one; index N//2 stays the centre
    throughout. Columns have lost their oversampling already.
    """
    matrix = header.encoding[0].reconSpace.matrixSize
    for axis, size in zip((-1, -2, -3)[: image.ndim], reversed(view_pixels(header))):
        image = crop_or_pad(image, size, axis)
    target = tuple(getattr(matrix, name) for name in "zyx"[-image.ndim :])
    if tuple(image.shape) == target:
        return image
    # orthonormal transforms of another size: keep the intensities, not the energy
    gain = (math.prod(target) / image.numel()) ** 0.5
    axes = tuple(range(-image.ndim, 0))
    kspace = to_kspace(image, axes)
    for axis, size in enumerate(target):
        kspace = crop_or_pad(kspace, size, axis)
    return to_image(kspace, axes) * gain


def recon_shape(header: Header) -> tuple[int, ...]:
    """(rows, cols) of the images, in 3D (partitions, rows, cols)."""
    matrix = header.encoding[0].reconSpace.matrixSize
    return (matrix.z, matrix.y, matrix.x) if n_partitions(header) > 1 else (matrix.y, matrix.x)


def mrd_images(
    stream: Iterable[Reconstruction | LostSlice],
    header: Header,
    line_headers: Mapping[SliceKey, LineHeader],
    provenance: Provenance,
    outputs: Collection[str] = ("magnitude",),
    weighting: Weighting | None = None,
) -> Iterator[tuple[Reconstruction | LostSlice, list[ismrmrd.Image]]]:
    """Each reconstruction with its images: those of `outputs`, and the spread where several samples were drawn.

    A volume is one image of all partitions, as from Gadgetron's 3D chain.

    line_headers: geometry and time stamps of each slice. outputs: magnitude (float32), phase (float32, radians, the
    smooth phase included), complex (complex64, that phase included). weighting: of a diffusion scan, for b-value and
    direction in the meta. Magnitudes and complex values are all in one scale: BRIGHT is the 99th percentile of the
    first slice, or HEAD times the noise where that is more; the meta's RescaleSlope takes it back to the units of the
    (whitened) k-space, and radians to mrad.
    """
    factor, used = None, set()
    for item in stream:
        if isinstance(item, LostSlice):
            yield item, []
            continue
        factor = factor or BRIGHT / max(item.mapped.scale, HEAD * item.mapped.data.sigma_n)
        number = _image_number(item.key, header)
        while number in used:  # limits that announce too little
            number += 1
        used.add(number)
        line = line_headers[item.key]
        images = []
        for picture in _pictures(item, header, factor, outputs):
            head = _image_header(item.key, line, header, number, picture)
            texts = _texts(item, header, picture, provenance)
            scale = {"GADGETRON_ImageNumber": str(number), **_scale(picture, factor)}
            meta = {**texts, **scale, **_provenance(item, picture, provenance), **_gadgetron_meta(item, line, header)}
            if weighting is not None:
                meta |= weighting.meta_of(item.key)
                for name in ("ImageComments", "GADGETRON_ImageComment"):
                    meta[name] = f"{meta[name]}{weighting_comment(meta)}"
            images.append(image_of(picture.pixels, head, meta))
        yield item, images


@dataclass(frozen=True)
class _Picture:
    """pixels: ([partitions,] rows, cols) on the recon space; role: the meta's DataRole; tag: what it is, in a word or
    two."""

    pixels: np.ndarray
    series: int
    role: str
    tag: str
    image_type: int = ismrmrd.IMTYPE_MAGNITUDE


def _pictures(item: Reconstruction, header: Header, factor: float, outputs: Collection[str]) -> Iterator[_Picture]:
    """What a slice's images show, the magnitude first."""
    tag = "DPM" if item.fallback is None else "CG-SENSE FALLBACK"
    if "magnitude" in outputs:
        yield _Picture(factor * _placed(item.image, header, torch.abs), RECONSTRUCTION, "Image", tag)
    if item.spread is not None:
        spread = _placed(item.spread, header, torch.abs)
        yield _Picture(factor * spread, SPREAD, "Uncertainty", "DPM std of samples")
    whole = item.image * item.mapped.phase
    if "phase" in outputs:
        radians = _placed(whole, header, torch.angle)
        yield _Picture(radians, PHASE, "Phase", f"{tag} phase", ismrmrd.IMTYPE_PHASE)
    if "complex" in outputs:
        yield _Picture(factor * _placed(whole, header), COMPLEX, "Complex", f"{tag} complex", ismrmrd.IMTYPE_COMPLEX)


def _placed(
    image: torch.Tensor, header: Header, part: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
) -> np.ndarray:
    """A part of the image's values on the recon space, resampled as complex."""
    return part(to_recon_space(image, header)).cpu().numpy()


def image_of(pixels: np.ndarray, head: ismrmrd.ImageHeader, meta: Mapping[str, Any]) -> ismrmrd.Image:
    """An MRD image of one channel from ([partitions,] rows, cols), with the geometry, counters and indices of `head`.

    Its `data[0]` is (partitions, rows, cols), one partition for a slice.
    """
    image = ismrmrd.Image.from_array(pixels.reshape(1, -1, *pixels.shape[-2:]), transpose=False)
    own = image.getHead()
    head.data_type, head.channels, head.matrix_size[:] = own.data_type, own.channels, own.matrix_size[:]
    image.setHead(head)
    image.attribute_string = ismrmrd.Meta(meta).serialize()
    return image


def _image_number(key: SliceKey, header: Header) -> int:
    """From 1 on, slices first, as Gadgetron counts: it does not depend on the order of acquisition."""
    number, step = 1, 1
    for name in _COUNTERS:
        number += step * getattr(key, name)
        limit = getattr(header.encoding[0].encodingLimits, name, None)
        step *= limit.maximum + 1 if limit is not None else 1
    return number


def _image_header(
    key: SliceKey, line: LineHeader, header: Header, number: int, picture: _Picture
) -> ismrmrd.ImageHeader:
    """Geometry, counters and time stamps of a slice's line nearest the k-space centre."""
    head = ismrmrd.ImageHeader()
    head.version = 1
    head.measurement_uid = line.measurement_uid
    head.field_of_view[:] = view_mm(header)
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position", "physiology_time_stamp"):
        getattr(head, name)[:] = getattr(line, name)
    head.acquisition_time_stamp = line.acquisition_time_stamp
    for name in _COUNTERS:
        setattr(head, name, getattr(key, name))
    head.image_type = picture.image_type
    head.image_index = number
    head.image_series_index = picture.series
    return head


def _texts(item: Reconstruction, header: Header, picture: _Picture, provenance: Provenance) -> dict[str, str]:
    """What the image is and how to show it, in both key sets: the MRD standard's names and Gadgetron's."""
    protocol = header.measurementInformation.protocolName if header.measurementInformation else None
    comment = RESEARCH if item.fallback is None else f"{RESEARCH}; CG-SENSE FALLBACK: {item.fallback}"
    comment = comment if item.adaptation is None else f"{comment}; {item.adaptation}"
    comment = commented(f"{comment}; CAUTION" if item.verdict.startswith("caution") else comment, item.remarks)
    if picture.role == "Uncertainty" and provenance.mode != "uncertainty":
        comment += "; spread of the fast mode, far below the error: mode uncertainty tells it"
    elif picture.role == "Uncertainty" and (item.stopped or item.steps < provenance.settings.steps):
        comment += f"; spread of fewer steps than the mode's, {item.drawn}: it need not tell the error"
    history = f"dpmrecon {provenance.package_version} {picture.tag}"
    is_phase = picture.series == PHASE
    return {
        "DataRole": picture.role,
        "GADGETRON_DataRole": "Image",  # another role would not become DICOM there
        "SeriesDescription": series_description(protocol, picture.tag),
        "GADGETRON_SeqDescription": f"_{picture.tag}",
        "ImageComments": comment,
        "GADGETRON_ImageComment": comment,
        "ImageProcessingHistory": history,
        "GADGETRON_ImageProcessingHistory": history,
        "ImageType": f"DERIVED\\PRIMARY\\{'P' if is_phase else 'OTHER'}\\{picture.tag.replace(' ', '_')}",
        **(window(*TURN) if is_phase else bright_window(picture.pixels)),
    }


def _scale(picture: _Picture, factor: float) -> dict[str, str]:
    """From the pixels to what they mean: radians to mrad, others to the units of the k-space."""
    if picture.series == PHASE:
        return MRAD
    return {"GADGETRON_ScaleRatio": f"{factor:.9g}", "RescaleSlope": f"{1 / factor:.9g}", "RescaleIntercept": "0"}


def radians_meta() -> dict[str, str]:
    """How to read and show an image of phase."""
    return {**MRAD, **window(*TURN)}


def series_description(protocol: str | None, title: str) -> str:
    """Of a series of this title, None for a scan whose protocol has no name."""
    return f"{protocol or 'scan'} {title} RESEARCH"


def derived_meta(meta: Mapping[str, Any], role: str, title: str, image_type: str, text: str) -> dict[str, Any]:
    """Of an image that is computed of others, one of which has `meta`. title: in the series' description; text: what
    was computed."""
    history = f"{meta.get('ImageProcessingHistory', 'dpmrecon')} {text}"
    return {
        **meta,
        "DataRole": role,
        "GADGETRON_DataRole": "Image",  # another role would not become DICOM there
        "SeriesDescription": series_description(meta.get("protocolName"), title),
        "GADGETRON_SeqDescription": f"_{role}",
        "ImageType": image_type,
        "ImageProcessingHistory": history,
        "GADGETRON_ImageProcessingHistory": history,
        "dpmrecon_map": text,
    }


def bright_window(pixels: np.ndarray) -> dict[str, str]:
    """The window from 0 to what few pixels are above."""
    width = max(1, round(float(np.percentile(np.abs(pixels), 99.5))))
    return window(max(1, width // 2), width)


def window(center: int | str, width: int | str) -> dict[str, str]:
    """How to show an image, in both key sets; hosts read whole numbers alone."""
    values = {"WindowCenter": str(center), "WindowWidth": str(width)}
    return {**values, **{f"GADGETRON_{name}": value for name, value in values.items()}}


def commented(comment: str, remarks: Iterable[str]) -> str:
    """An image's comment with the remarks that it does not have yet."""
    return "; ".join([comment, *(remark for remark in remarks if remark not in comment)])


def with_sources(meta: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The meta of an image that is computed of several: `told`, the fallback and remarks of any, is in its comment
    too."""
    said = [f"CG-SENSE FALLBACK: {told['dpmrecon_fallback']}"] if "dpmrecon_fallback" in told else []
    said += remarks_of(told)
    names = [name for name in ("ImageComments", "GADGETRON_ImageComment") if name in meta]
    return {**meta, **told, **{name: commented(str(meta[name]), said) for name in names}}


def remarks_meta(remarks: Sequence[str], *, trusted: bool) -> dict[str, Any]:
    """Remarks as entries of an image's meta; nothing where there is nothing to say."""
    found: dict[str, Any] = {"dpmrecon_remarks": list(remarks)} if remarks else {}
    return found if trusted else {**found, "dpmrecon_trusted": "false"}


def remarks_of(meta: Mapping[str, Any]) -> list[str]:
    """The remarks of an image's meta."""
    found = meta.get("dpmrecon_remarks", [])
    return [found] if isinstance(found, str) else list(found)


def _provenance(item: Reconstruction, picture: _Picture, provenance: Provenance) -> dict[str, Any]:
    """Model and sampler, and what they made of this slice. Fallback, remarks and distrust: where there are any."""
    samples, steps = item.samples, item.steps
    if item.image_draws is not None and picture.series != SPREAD:
        samples, steps = item.image_draws
    found = {
        "dpmrecon_version": provenance.package_version,
        "dpmrecon_model": provenance.model_id,
        "dpmrecon_checksum": provenance.model_sha256,
        "dpmrecon_sampler": provenance.sampler if item.fallback is None else "cg-sense",
        "dpmrecon_mode": provenance.mode,
        "dpmrecon_steps": str(steps),
        "dpmrecon_samples": str(samples),
        "dpmrecon_evaluations": str(item.evaluations),
        "dpmrecon_seed": str(provenance.seed),
        "dpmrecon_residual": f"{item.residual:.4g}",
        "dpmrecon_verdict": item.verdict,
    }
    if provenance.conjugated:
        found["dpmrecon_conjugated"] = "yes"
    if item.adaptation is not None:
        found["dpmrecon_adaptation"] = item.adaptation
    found |= remarks_meta(item.remarks, trusted=item.trusted)
    return found if item.fallback is None else {**found, "dpmrecon_fallback": item.fallback}


def _gadgetron_meta(item: Reconstruction, line: LineHeader, header: Header) -> dict[str, str | list[str]]:
    """What Gadgetron's own reconstructions say about geometry and scan, in its names; mm and ms as in the header."""
    encoding = header.encoding[0]
    rows, cols = item.mapped.data.kspace.shape[-2:]
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    view = view_mm(header)
    measurement = header.measurementInformation
    numbers = {
        "PatientPosition": line.position,
        "read_dir": line.read_dir,
        "phase_dir": line.phase_dir,
        "slice_dir": line.slice_dir,
        "patient_table_position": line.patient_table_position,
        "acquisition_time_stamp": [line.acquisition_time_stamp],
        "physiology_time_stamp": line.physiology_time_stamp,
        "encoding": [line.encoding_space],
        # the readout's oversampling is gone
        "encoded_matrix": [cols, rows, encoded.matrixSize.z or 1],
        "encoding_FOV": [
            view[0] * cols / view_pixels(header)[-1],
            encoded.fieldOfView_mm.y,
            encoded.fieldOfView_mm.z,
        ],
        "recon_matrix": [recon.matrixSize.x, recon.matrixSize.y, recon.matrixSize.z or 1],
        "recon_FOV": view,
    }
    names = {
        "measurementID": getattr(measurement, "measurementID", None),
        "protocolName": getattr(measurement, "protocolName", None),
        "patient_position": getattr(getattr(measurement, "patientPosition", None), "value", None),
    }
    return {
        "ImageRowDir": [f"{v:.9g}" for v in line.read_dir],
        "ImageColumnDir": [f"{v:.9g}" for v in line.phase_dir],
        **{name: [f"{value or 0:.6g}" for value in values] for name, values in numbers.items()},
        **{name: value for name, value in names.items() if value},
    }
