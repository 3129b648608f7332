"""How a scan's lines are to be taken: what the options say, and conventions of vendors with their evidence."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import h5py
import ismrmrd

from ..errors import BadInputError
from ..options import Options
from .file import open_scan
from .flags import IGNORED, mask_of
from .header import Header
from .scan import Scan

# Vendors whose MRD files hold k-space for a forward transform from k-space to the image, where ours is the inverse:
# without conjugation every slice comes out turned by 180 degrees in its plane. Siemens (files of siemens_to_ismrmrd,
# and what its hosts stream): mrpro conjugates them (its issues 828 and 833), python-ismrmrd-server flips rows and
# columns "to be consistent with ICE" (invertcontrast.py, bartfire.py), Gadgetron's images of them are turned
# (gadgetron issue 1003). No real file with its DICOM was seen here.
# They also keep the receiver's frequency during an EPI line, see epi.Readouts (Gadgetron's EPIReconX corrects it).
CONJUGATED = r"siemens"
CONJUGATION = "k-space is conjugated, as the vendor's files need it (--conjugate off leaves it as it is)"
TAKEN = ("noise", "coils", "ignore_flags", "group", "set")  # options that say which data an image is of


@dataclass(frozen=True)
class Receiving:
    """conjugate: k-space is conjugated; ignored: mask of flags whose lines are left out; coils: the channels that are
    used, None for all; noise: noise measurement of elsewhere, in place of the scan's own; taken: the options that say
    so, by name, where they are not the defaults."""

    conjugate: bool = False
    ignored: int = IGNORED
    coils: tuple[int, ...] | None = None
    noise: tuple[ismrmrd.Acquisition, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Options, header: Header) -> "Receiving":
        """Of a scan in a file or from an MRD client. Raises BadInputError."""
        return cls(
            conjugate=options.conjugate == "on" or (options.conjugate == "auto" and by_vendor(header)),
            ignored=_ignored(options),
            coils=None if options.coils is None else coils_of(options.coils),
            noise=() if options.noise is None else noise_of(options.noise),
            taken={name: str(getattr(options, name)) for name in TAKEN if getattr(options, name) is not None},
        )


def open_as(path: str | PathLike, options: Options, file: h5py.File | None = None) -> AbstractContextManager[Scan]:
    """`open_scan` of a file as the options say. Raises BadInputError."""
    ignored, own_noise = _ignored(options), options.noise is None
    return open_scan(path, group=options.group, changes=options.set, ignored=ignored, own_noise=own_noise, file=file)


def _ignored(options: Options) -> int:
    return IGNORED if options.ignore_flags is None else mask_of(options.ignore_flags)


def by_vendor(header: Header) -> bool:
    """Whether the vendor's files hold k-space for the other transform."""
    return is_conjugated(getattr(header.acquisitionSystemInformation, "systemVendor", None))


def is_conjugated(vendor: str | None) -> bool:
    """The same of a vendor's name."""
    return re.search(CONJUGATED, vendor or "", re.IGNORECASE) is not None


def coils_of(text: str) -> tuple[int, ...]:
    """Channel numbers from 0 on, as 0-5,7. Raises BadInputError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise BadInputError(f"coils are '{text}': give channel numbers from 0 on, as 0-5,7")
        found += range(first, last + 1)
    return tuple(sorted(set(found)))


def noise_of(path: Path) -> tuple[ismrmrd.Acquisition, ...]:
    """The noise measurement of another file. Raises BadInputError where it holds none."""
    with open_scan(path, noise_alone=True) as scan:
        lines = tuple(scan.noise())
    if not lines:
        raise BadInputError(f"{path} holds no noise measurement: give a file with lines that bear that flag")
    return lines
