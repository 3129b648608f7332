"""From reconstructions to ISMRMRD images: recon space, headers and meta."""

from collections.abc import Iterable, Iterator

import ismrmrd
import numpy as np
import torch

from .. import __version__
from ..mrd.collect import LostSlice
from ..physics.fourier import crop_or_pad, to_image, to_kspace
from ..prior.checkpoint import Checkpoint
from ..recon.sample import Reconstruction, Sampling

RESEARCH = "RESEARCH: not for diagnostic use"
RECONSTRUCTION, SPREAD = 1, 2  # series index: image_1 and image_2 in the file
# The 99th percentile of a series' first slice: fine enough in whole numbers; other slices may be 30 times as bright
BRIGHT = 1000.0
LARGEST = 32767  # of an integer image: Gadgetron's own tail stops there, and int16 readers too
_COUNTERS = ("slice", "contrast", "phase", "set", "repetition", "average")  # the first counts fastest


def to_recon_space(image: torch.Tensor, header: ismrmrd.xsd.ismrmrdHeader) -> torch.Tensor:
    """(rows, cols) of the encoded matrix to the recon space's field of view and matrix.

    The field of view is cropped in the image, the matrix is reached by zero-filling (or cropping) k-space; index
    N//2 stays the slice centre throughout. Columns have lost their oversampling already.
    """
    encoded, recon = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    rows = round(encoded.matrixSize.y * recon.fieldOfView_mm.y / encoded.fieldOfView_mm.y)
    image = crop_or_pad(image, rows, 0)
    target = (recon.matrixSize.y, recon.matrixSize.x)
    if tuple(image.shape) == target:
        return image
    # orthonormal transforms of another size: keep the intensities, not the energy
    gain = (target[0] * target[1] / image.numel()) ** 0.5
    kspace = to_kspace(image)
    for axis, size in enumerate(target):
        kspace = crop_or_pad(kspace, size, axis)
    return to_image(kspace) * gain


def mrd_images(
    stream: Iterable[Reconstruction | LostSlice],
    header: ismrmrd.xsd.ismrmrdHeader,
    checkpoint: Checkpoint,
    sampling: Sampling,
) -> Iterator[tuple[Reconstruction | LostSlice, list[ismrmrd.Image]]]:
    """Each reconstruction with its images: the reconstruction, and the spread where several samples were drawn.

    float32, all in one scale: BRIGHT is the 99th percentile of the first slice; the meta's RescaleSlope takes it back
    to the units of the (whitened) k-space.
    """
    factor, used = None, set()
    for item in stream:
        if isinstance(item, LostSlice):
            yield item, []
            continue
        factor = factor or BRIGHT / item.mapped.scale
        number = _image_number(item, header)
        while number in used:  # limits that announce too little
            number += 1
        used.add(number)
        outputs = [(item.image, RECONSTRUCTION, "Image", "DPM" if item.fallback is None else "CG-SENSE FALLBACK")]
        if item.spread is not None:
            outputs.append((item.spread.to(torch.complex64), SPREAD, "Uncertainty", "DPM std of samples"))
        images = []
        for image, series, role, tag in outputs:
            magnitude = factor * to_recon_space(image, header).abs().cpu().numpy()
            mrd = ismrmrd.Image.from_array(magnitude[None, None], transpose=False)
            mrd.setHead(_image_header(mrd.getHead(), item, header, number, series))
            mrd.attribute_string = _meta(
                item, header, magnitude, role, tag, checkpoint, sampling, factor, number
            ).serialize()
            images.append(mrd)
        yield item, images


def _image_number(item: Reconstruction, header: ismrmrd.xsd.ismrmrdHeader) -> int:
    """From 1 on, slices first, as Gadgetron counts: it does not depend on the order of acquisition."""
    number, step = 1, 1
    for name in _COUNTERS:
        number += step * getattr(item.mapped.data.key, name)
        limit = getattr(header.encoding[0].encodingLimits, name, None)
        step *= limit.maximum + 1 if limit is not None else 1
    return number


def to_uint16(image: ismrmrd.Image) -> ismrmrd.Image:
    """The same image in whole numbers of its scale, 0 to LARGEST."""
    data = np.clip(np.rint(image.data), 0, LARGEST).astype(np.uint16)
    head = ismrmrd.ImageHeader.from_buffer_copy(image.getHead())
    head.data_type = ismrmrd.DATATYPE_USHORT
    found = ismrmrd.Image.from_array(data, transpose=False)
    found.setHead(head)
    found.attribute_string = image.attribute_string
    return found


def _image_header(
    head: ismrmrd.ImageHeader, item: Reconstruction, header: ismrmrd.xsd.ismrmrdHeader, number: int, series: int
) -> ismrmrd.ImageHeader:
    """Geometry, counters and time stamps of the acquired line nearest the k-space centre."""
    line = item.mapped.data.header
    fov = header.encoding[0].reconSpace.fieldOfView_mm
    head.measurement_uid = line.measurement_uid
    head.field_of_view[:] = (fov.x, fov.y, fov.z)
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position", "physiology_time_stamp"):
        getattr(head, name)[:] = getattr(line, name)[:]
    head.acquisition_time_stamp = line.acquisition_time_stamp
    for name in ("slice", "contrast", "phase", "set", "repetition", "average"):
        setattr(head, name, getattr(item.mapped.data.key, name))
    head.image_type = ismrmrd.IMTYPE_MAGNITUDE
    head.image_index = number
    head.image_series_index = series
    return head


def _meta(
    item: Reconstruction,
    header: ismrmrd.xsd.ismrmrdHeader,
    magnitude: np.ndarray,
    role: str,
    tag: str,
    checkpoint: Checkpoint,
    sampling: Sampling,
    factor: float,
    number: int,
) -> ismrmrd.Meta:
    """Both key sets: the MRD standard's names and Gadgetron's."""
    line = item.mapped.data.header
    protocol = header.measurementInformation.protocolName if header.measurementInformation else None
    comment = RESEARCH if item.fallback is None else f"{RESEARCH}; CG-SENSE FALLBACK: {item.fallback}"
    if role == "Uncertainty" and sampling.mode != "uncertainty":
        comment += "; spread of the fast mode, far below the error: mode uncertainty tells it"
    width = max(1, round(float(np.percentile(magnitude, 99.5))))
    description = f"{protocol or 'scan'} {tag} RESEARCH"
    history = f"dpmrecon {__version__} {tag}"
    return ismrmrd.Meta(
        {
            "DataRole": role,
            "GADGETRON_DataRole": "Image",  # another role would not become DICOM there
            "SeriesDescription": description,
            "GADGETRON_SeqDescription": f"_{tag}",
            "ImageComments": comment,
            "GADGETRON_ImageComment": comment,
            "ImageProcessingHistory": history,
            "GADGETRON_ImageProcessingHistory": history,
            "ImageType": "DERIVED\\PRIMARY\\OTHER\\" + tag.replace(" ", "_"),
            "WindowCenter": str(max(1, width // 2)),
            "WindowWidth": str(width),
            "GADGETRON_WindowCenter": str(max(1, width // 2)),
            "GADGETRON_WindowWidth": str(width),
            "GADGETRON_ImageNumber": str(number),
            "GADGETRON_ScaleRatio": f"{factor:.9g}",
            "RescaleSlope": f"{1 / factor:.9g}",
            "RescaleIntercept": "0",
            "ImageRowDir": [f"{v:.9g}" for v in line.read_dir],
            "ImageColumnDir": [f"{v:.9g}" for v in line.phase_dir],
            "dpmrecon_version": __version__,
            "dpmrecon_model": checkpoint.model_id,
            "dpmrecon_checksum": str(checkpoint.card["checksum_sha256"]),
            "dpmrecon_sampler": sampling.sampler if item.fallback is None else "cg-sense",
            "dpmrecon_mode": sampling.mode,
            "dpmrecon_steps": str(item.steps),
            "dpmrecon_samples": str(item.samples),
            "dpmrecon_evaluations": str(item.evaluations),
            "dpmrecon_seed": str(sampling.seed),
            "dpmrecon_residual": f"{item.residual:.4g}",
            "dpmrecon_fallback": item.fallback or "none",
            **_gadgetron_meta(item, header),
        }
    )


def _gadgetron_meta(item: Reconstruction, header: ismrmrd.xsd.ismrmrdHeader) -> dict[str, str | list[str]]:
    """What Gadgetron's own reconstructions say about geometry and scan, in its names; mm and ms as in the header."""
    line, encoding = item.mapped.data.header, header.encoding[0]
    rows, cols = item.mapped.data.kspace.shape[-2:]
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    measurement = header.measurementInformation
    numbers = {
        "PatientPosition": line.position,
        "read_dir": line.read_dir,
        "phase_dir": line.phase_dir,
        "slice_dir": line.slice_dir,
        "patient_table_position": line.patient_table_position,
        "acquisition_time_stamp": [line.acquisition_time_stamp],
        "physiology_time_stamp": line.physiology_time_stamp,
        "encoding": [line.encoding_space_ref],
        # the readout's oversampling is gone
        "encoded_matrix": [cols, rows, encoded.matrixSize.z or 1],
        "encoding_FOV": [recon.fieldOfView_mm.x, encoded.fieldOfView_mm.y, encoded.fieldOfView_mm.z],
        "recon_matrix": [recon.matrixSize.x, recon.matrixSize.y, recon.matrixSize.z or 1],
        "recon_FOV": [recon.fieldOfView_mm.x, recon.fieldOfView_mm.y, recon.fieldOfView_mm.z],
    }
    names = {
        "measurementID": getattr(measurement, "measurementID", None),
        "protocolName": getattr(measurement, "protocolName", None),
        "patient_position": getattr(getattr(measurement, "patientPosition", None), "value", None),
    }
    return {
        **{name: [f"{value or 0:.6g}" for value in values] for name, values in numbers.items()},
        **{name: value for name, value in names.items() if value},
    }
