"""images.h5 of a result folder: ISMRMRD images that are on disk as soon as their slice is done."""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import h5py
import ismrmrd
import numpy as np

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.header import Header
from ..recon.sample import conventional
from ..recon.types import Reconstruction
from ..version import __version__
from .mrd_images import RESEARCH, commented, image_of, remarks_meta, series_description, to_recon_space
from .weighting import weighting_comment
from .writers import telling

ROOM = 1 << 16  # bytes that HDF5 needs at most beside the pixels and texts of an image
OURS = "dpmrecon"  # attribute of a file that a replay began
CONVENTIONAL = 3  # series index: image_3 in the file
MEASUREMENT = "measurementID"  # of Siemens scans: serial numbers of scanner, patient and study
TIME_OF_DAY = "acquisition_time_stamp"  # in ticks since midnight
# elements of an MRD header that tell who was scanned, where and when
_PERSONAL = (
    *("subjectInformation", "studyInformation", "institutionName", "stationName", "deviceSerialNumber", "seriesDate"),
    *("seriesTime", "seriesDescription", "seriesInstanceUIDRoot", "frameOfReferenceUID", "referencedImageSequence"),
    *("measurementDependency", "deviceID", MEASUREMENT),
)
# and user parameters that do, by their names: Siemens's stylesheets write the patient's age and identifiers
_PERSONAL_PARAMETERS = rb"patient|loid|birth|serial"


def has_nibabel() -> bool:
    """Whether NIfTI files can be written."""
    return find_spec("nibabel") is not None


@dataclass(frozen=True)
class Outputs:
    """images: of magnitude, phase, complex; conventional: keep the CG-SENSE image of every slice as a series of its own
    (image_3); anonymize: leave patient and study data out of images.h5, and the file's name out of the report; nifti:
    write nifti/ too. Raises BadInputError for a conventional image without the magnitude beside it, and
    where nibabel is missing for NIfTI."""

    images: tuple[str, ...] = ("magnitude",)
    conventional: bool = False
    anonymize: bool = False
    nifti: bool = False

    def __post_init__(self) -> None:
        if self.conventional and "magnitude" not in self.images:
            raise BadInputError(
                f"the conventional image stands beside the magnitude, and the output is {', '.join(self.images)}: ask "
                "for the magnitude as well"
            )
        if self.nifti and not has_nibabel():
            raise BadInputError("NIfTI needs nibabel, which is not installed: pip install nibabel")

    @property
    def files(self) -> int:
        """About as many images of a slice go to DICOM and NIfTI; the spread is one."""
        return (len(self.images) + 1 + self.conventional) * (2 if self.nifti else 1)


class ImagesFile:
    """A writer of images.h5: images are on disk as soon as they are added. Raises BadInputError.

    xml: the header with the options' changes.
    """

    def __init__(self, path: Path, header: Header, xml: bytes, outputs: Outputs):
        self.path, self.header, self.outputs = path, header, outputs
        xml = without_patient(xml) if outputs.anonymize else xml
        with telling(path.parent):
            _claim(path, ROOM + len(xml))
            path.unlink()
            self.dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
            self.dataset.write_xml_header(xml)
            self.dataset._file.attrs[OURS] = __version__
            self.dataset._file.flush()

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        if isinstance(item, LostSlice):
            return
        if self.outputs.conventional:
            images = [*images, _conventional(images[0], item, self.header)]
        with telling(self.path.parent, "the slices before are kept"):
            for image in images:
                self._store(image)

    def put(self, image: ismrmrd.Image) -> None:
        """Store an image that is of no slice alone, as a map."""
        with telling(self.path.parent, "make room or choose another --out"):
            self._store(image)

    def _store(self, image: ismrmrd.Image) -> None:
        if self.outputs.anonymize:
            meta = {name: value for name, value in image.meta.items() if name not in (MEASUREMENT, TIME_OF_DAY)}
            head = ismrmrd.ImageHeader.from_buffer_copy(image.getHead())
            setattr(head, TIME_OF_DAY, 0)
            image = image_of(image.data[0], head, meta)
        store(self.dataset, image)

    def close(self, failure: BaseException | None) -> None:
        with telling(self.path.parent, "make room or choose another --out"):
            self.dataset.close()


def store(dataset: ismrmrd.Dataset, image: ismrmrd.Image) -> None:
    """Append an image to its series (image_N) and see it on disk. Raises OSError or RuntimeError.

    A file that HDF5 cannot write to cannot be closed either and crashes the process, so the space is claimed first.
    """
    file = dataset._file
    _claim(Path(file.filename), file.id.get_filesize() + image.data.nbytes + len(image.attribute_string) + ROOM)
    dataset.append_image(f"image_{image.image_series_index}", image)
    file.flush()


def is_ours(path: Path) -> bool:
    """Whether a replay, which may have been killed, began this file, or there are no images in it."""
    try:
        with h5py.File(path, "r") as file:
            return OURS in file.attrs
    except OSError:  # it is not there, or broke off
        return True


def series_of(images: Path) -> list[int]:
    """The numbers N of the series image_N in images.h5, in order."""
    with h5py.File(images, "r") as file:
        return sorted(int(name[6:]) for name in file["dataset"] if name.startswith("image_"))


def images_in(images: Path, series: int) -> Iterator[ismrmrd.Image]:
    """The images of the series image_N in images.h5, in order."""
    with closing(ismrmrd.Dataset(str(images), "dataset", create_if_needed=False)) as dataset:
        for index in range(dataset.number_of_images(f"image_{series}")):
            yield dataset.read_image(f"image_{series}", index)


def _claim(path: Path, size: int) -> None:
    """Make a file this long, on disk as well; what it holds stays."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # no O_APPEND: without fallocate (NFS), glibc refuses it
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)


def _conventional(image: ismrmrd.Image, item: Reconstruction, header: Header) -> ismrmrd.Image:
    """A slice's CG-SENSE image beside its reconstruction `image`, of the same scale."""
    meta = dict(image.meta)
    for name in ("fallback", "remarks", "trusted", "adaptation"):  # of the reconstruction
        meta.pop(f"dpmrecon_{name}", None)
    own = conventional(item.mapped, "asked for")
    comment = f"{RESEARCH}; CAUTION" if own.verdict.startswith("caution") else RESEARCH
    comment = commented(comment, own.remarks) + weighting_comment(meta)
    scale = 1 / float(meta.get("RescaleSlope", 1))
    magnitude = scale * to_recon_space(own.image, header).abs().cpu().numpy()
    head = ismrmrd.ImageHeader.from_buffer_copy(image.getHead())
    head.image_series_index = CONVENTIONAL
    protocol = header.measurementInformation.protocolName if header.measurementInformation else None
    meta |= {
        "DataRole": "Conventional",
        "GADGETRON_DataRole": "Conventional",
        "SeriesDescription": series_description(protocol, "CG-SENSE"),
        "GADGETRON_SeqDescription": "_CG-SENSE",
        "ImageComments": comment,
        "GADGETRON_ImageComment": comment,
        "ImageProcessingHistory": f"dpmrecon {__version__} CG-SENSE",
        "GADGETRON_ImageProcessingHistory": f"dpmrecon {__version__} CG-SENSE",
        "ImageType": "DERIVED\\PRIMARY\\OTHER\\CGSENSE",
        "dpmrecon_sampler": "cg-sense",
        "dpmrecon_residual": f"{own.residual:.4g}",
        "dpmrecon_verdict": own.verdict,
        **{f"dpmrecon_{name}": str(getattr(own, name)) for name in ("steps", "samples", "evaluations")},
        **remarks_meta(own.remarks, trusted=own.trusted),
    }
    return image_of(magnitude.astype(np.float32), head, meta)


def without_patient(xml: bytes) -> bytes:
    """An MRD header without the elements that tell who was scanned, where and when; the rest byte for byte."""
    for name in _PERSONAL:
        pattern = rb"<((?:[\w.-]+:)?" + name.encode() + rb")\b[^>]*(?:/>|(?<!/)>.*?</\1\s*>)"
        xml = re.sub(pattern, b"", xml, flags=re.DOTALL)
    prefix = rb"(?:[\w.-]+:)?"
    named = rb"<" + prefix + rb"name\s*>[^<]*(?:" + _PERSONAL_PARAMETERS + rb")[^<]*<"
    parameter = rb"<(" + prefix + rb"userParameter(?:Long|Double|String|Base64))\s*>\s*" + named + rb".*?</\1\s*>"
    return re.sub(parameter, b"", xml, flags=re.DOTALL | re.IGNORECASE)
