"""From reconstructions to ISMRMRD images: recon space, headers and meta."""

from collections.abc import Iterable, Iterator

import ismrmrd
import numpy as np
import torch

from . import __version__
from .acquisitions import LostSlice
from .checkpoint import Checkpoint
from .fourier import crop_or_pad, to_image, to_kspace
from .reconstruct import Reconstruction, Sampling

RESEARCH = "RESEARCH: not for diagnostic use"
RECONSTRUCTION, SPREAD = 1, 2  # series index: image_1 and image_2 in the file


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
    """Each reconstruction with its images: the reconstruction, and the spread where several samples were drawn."""
    number = 0
    for item in stream:
        if isinstance(item, LostSlice):
            yield item, []
            continue
        number += 1
        outputs = [(item.image, RECONSTRUCTION, "Image", "DPM" if item.fallback is None else "CG-SENSE FALLBACK")]
        if item.spread is not None:
            outputs.append((item.spread.to(torch.complex64), SPREAD, "Uncertainty", "DPM std of samples"))
        images = []
        for image, series, role, tag in outputs:
            magnitude = to_recon_space(image, header).abs().cpu().numpy()
            mrd = ismrmrd.Image.from_array(magnitude[None, None], transpose=False)
            mrd.setHead(_image_header(mrd.getHead(), item, header, number, series))
            mrd.attribute_string = _meta(item, header, magnitude, role, tag, checkpoint, sampling).serialize()
            images.append(mrd)
        yield item, images


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
) -> ismrmrd.Meta:
    """Both key sets: the MRD standard's names and Gadgetron's."""
    line = item.mapped.data.header
    protocol = header.measurementInformation.protocolName if header.measurementInformation else None
    comment = RESEARCH if item.fallback is None else f"{RESEARCH}; CG-SENSE FALLBACK: {item.fallback}"
    width = max(1, round(float(np.percentile(magnitude, 99.5))))
    description = f"{protocol or 'scan'} {tag} RESEARCH"
    history = f"dpmrecon {__version__} {tag}"
    return ismrmrd.Meta(
        {
            "DataRole": role,
            "GADGETRON_DataRole": role,
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
            "ImageRowDir": [f"{v:.9g}" for v in line.read_dir],
            "ImageColumnDir": [f"{v:.9g}" for v in line.phase_dir],
            "dpmrecon_version": __version__,
            "dpmrecon_model": checkpoint.model_id,
            "dpmrecon_checksum": str(checkpoint.card["checksum_sha256"]),
            "dpmrecon_sampler": sampling.sampler if item.fallback is None else "cg-sense",
            "dpmrecon_steps": str(sampling.settings.steps),
            "dpmrecon_samples": str(sampling.samples),
            "dpmrecon_seed": str(sampling.seed),
            "dpmrecon_residual": f"{item.residual:.4g}",
            "dpmrecon_fallback": item.fallback or "none",
        }
    )
