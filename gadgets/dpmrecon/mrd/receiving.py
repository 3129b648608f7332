"""How a scan's lines are to be taken: what the options say, and conventions of vendors with their evidence."""

import hashlib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import h5py
import ismrmrd

from ..contrasts import CONTRAST_LABELS
from ..errors import BadInputError
from ..options import Options
from .file import open_scan
from .flags import IGNORED, mask_of
from .header import Header, contrast_label
from .patient import is_placeholder
from .scan import Scan

# Vendors whose MRD files hold k-space for a forward transform from k-space to the image, where ours is the inverse:
# without conjugation every slice comes out turned by 180 degrees in its plane. Siemens (files of siemens_to_ismrmrd,
# and what its hosts stream): mrpro conjugates them (its issues 828 and 833), python-ismrmrd-server flips rows and
# columns "to be consistent with ICE" (invertcontrast.py, bartfire.py), Gadgetron's images of them are turned
# (gadgetron issue 1003). No real file with its DICOM was seen here.
# They also keep the receiver's frequency during an EPI line, see epi.Readouts (Gadgetron's EPIReconX corrects it).
CONJUGATED = r"siemens"
# Where a header names no vendor, as anonymised ones: words of Siemens's models, and the user parameters that
# siemens_to_ismrmrd writes alone
MODELS = (
    r"magnetom|biograph ?mmr|investigational_device|\b(prisma|skyra|aera|verio|trio|avanto|vida|lumina|sola|altea|"
    r"espree|symphony|sonata|allegra|amira|essenza|spectra|terra)(\b|_|fit|tim)"
)
PARAMETERS = "MaxwellCoefficient_"
SIEMENS = "Siemens"
NO_VENDOR = (
    "the header names no vendor: k-space is taken as it is; where it is of a Siemens scanner, the images are turned by "
    "180 degrees then (--conjugate on)"
)
CONJUGATION = "k-space is conjugated, as the vendor's files need it (--conjugate off leaves it as it is)"
MOST = 2**16 - 1  # channel that MRD can count
TAKEN = ("noise", "coils", "ignore_flags", "group", "set")  # options that say which data an image is of


def untold(taken: Mapping[str, str]) -> dict[str, str]:
    """`Receiving.taken` without values that may name the patient: their checksums, which tell runs apart."""
    return {
        name: f"sha256 {hashlib.sha256(value.encode()).hexdigest()[:12]}" if name in ("noise", "set") else value
        for name, value in taken.items()
    }


@dataclass(frozen=True)
class Receiving:
    """conjugate: k-space is conjugated; ignored: mask of flags whose lines are left out; coils: the channels that are
    used, None for all; noise: noise measurement of elsewhere, in place of the scan's own; taken: the options that say
    so, by name, where they are not the defaults; remarks: on what the header leaves open, or the options contradict."""

    conjugate: bool = False
    ignored: int = IGNORED
    coils: tuple[int, ...] | None = None
    noise: tuple[ismrmrd.Acquisition, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Options, header: Header) -> "Receiving":
        """Of a scan in a file or from an MRD client. Raises BadInputError."""
        return cls(
            conjugate=options.conjugate == "on" or (options.conjugate == "auto" and by_vendor(header)),
            ignored=_ignored(options),
            coils=None if options.coils is None else coils_of(options.coils),
            noise=() if options.noise is None else noise_of(options.noise),
            taken={name: str(getattr(options, name)) for name in TAKEN if getattr(options, name) is not None},
            remarks=(
                *((NO_VENDOR,) if options.conjugate == "auto" and not vendor_of(header) else ()),
                *other_contrast(options, header),
            ),
        )


def open_as(path: str | PathLike, options: Options, file: h5py.File | None = None) -> AbstractContextManager[Scan]:
    """`open_scan` of a file as the options say. Raises BadInputError."""
    ignored, own_noise = _ignored(options), options.noise is None
    return open_scan(path, group=options.group, changes=options.set, ignored=ignored, own_noise=own_noise, file=file)


def other_contrast(options: Options, header: Header) -> tuple[str, ...]:
    """The remark on a contrast that options or chain give where the header names another one; not on a site's own."""
    named = contrast_label(header)
    if options.contrast not in CONTRAST_LABELS or named in (None, options.contrast):
        return ()
    return (
        f"the contrast given is {options.contrast} and the scan's protocol is named as {named}: see whether option or "
        "chain is of this scan, the prior and what is made beside the images go by it",
    )


def _ignored(options: Options) -> int:
    return IGNORED if options.ignore_flags is None else mask_of(options.ignore_flags)


def by_vendor(header: Header) -> bool:
    """Whether the vendor's files hold k-space for the other transform."""
    return is_conjugated(vendor_of(header))


def vendor_of(header: Header) -> str:
    """The vendor's name; where the header has none, Siemens by model or user parameters, else empty."""
    system, user = header.acquisitionSystemInformation, header.userParameters
    name = str(getattr(system, "systemVendor", None) or "").strip()
    if name and not is_placeholder(name):
        return name
    model = str(getattr(system, "systemModel", None) or "")
    names = [str(parameter.name) for parameter in getattr(user, "userParameterDouble", None) or []]
    hinted = re.search(MODELS, model, re.IGNORECASE) or any(one.startswith(PARAMETERS) for one in names)
    return SIEMENS if hinted else ""


def is_conjugated(vendor: str | None) -> bool:
    """The same of a vendor's name."""
    return re.search(CONJUGATED, vendor or "", re.IGNORECASE) is not None


def coils_of(text: str) -> tuple[int, ...]:
    """Channel numbers from 0 to MOST, as 0-5,7. Raises BadInputError."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MOST:
            raise BadInputError(f"coils are '{text}': give channel numbers from 0 to {MOST}, as 0-5,7")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def noise_of(path: Path) -> tuple[ismrmrd.Acquisition, ...]:
    """The noise measurement of another file. Raises BadInputError where it holds none."""
    with open_scan(path, noise_alone=True) as scan:
        lines = tuple(scan.noise())
    if not lines:
        raise BadInputError(f"{path} holds no noise measurement: give a file with lines that bear that flag")
    return lines
