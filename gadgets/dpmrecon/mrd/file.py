"""ISMRMRD (MRD) raw files: opened once, each line's samples read once."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import h5py
import ismrmrd
import numpy as np

from ..errors import BadInputError, first_line
from ..options import path_of
from . import fastmri
from .diffusion import counted_for_images, weightings_of
from .flags import IGNORED, NOISE, PHASE_CORRECTION, calibrates_alone, names_of
from .header import GE, Header, calibration_is_separate, is_epi, overridden, read_header
from .scan import LINES, Scan
from .scan_log import ScanLog
from .version2 import MAGIC, EndsEarlyError, header_of, items

SUFFIXES = (".h5", ".hdf5", ".mrd")  # of scans in a folder
COUNTERS = ("average", "slice", "repetition", "set", "phase", "contrast")  # the last sorts first


@contextmanager
def open_scan(
    path: str | os.PathLike,
    *,
    group: str | None = None,
    changes: str | None = None,
    ignored: int = IGNORED,
    noise_alone: bool = False,
    own_noise: bool = True,
    file: h5py.File | None = None,
) -> Iterator[Scan]:
    """Open an ISMRMRD HDF5 file for reading and read its header and all acquisition heads (340 bytes a line).

    A file of MRD version 2 is read as one of version 1, into a file without a name; of one that breaks off, the lines
    that came, with a remark.

    group: of the file, None for the one that holds a scan; changes: header values in place of its own, see
    `header.overridden`; ignored: mask of flags whose lines are left out; noise_alone: a noise measurement is enough;
    own_noise: another group's serves where there is none, as Siemens's dependency measurements; file: the same, where
    it is open already and stays so, `path` being what it is called. Raises BadInputError, in one sentence, for anything
    that is not a readable scan.
    """
    path, remark = path_of("scan", path), None
    with ExitStack() as stack:
        if file is None and _is_version2(path):
            spool = stack.enter_context(closing(nameless()))
            file, remark = spool._file, _spooled(path, spool)
        elif file is None:
            file = stack.enter_context(_open_hdf5(path))
        if fastmri.is_fastmri(file):
            scan: Scan = fastmri.FastMriScan.of(file, path, changes)
        else:
            chosen = _group(file, path, group, noise_alone)
            scan = _scan(chosen, path, changes, ignored)
            others = [] if group is not None or noise_alone else _other_scans(file, chosen)
            if others:
                scan.log.remark(
                    f"the file holds another scan in {', '.join(others)}: that in {chosen.name[1:]} is taken, as long "
                    "as --group names no other"
                )
            if own_noise and not noise_alone and not np.any(scan.heads["flags"] & np.uint64(NOISE)):
                scan.noise_elsewhere = _noise_beside(file, chosen, scan)
        if remark is not None:
            scan.log.remark(remark)
        try:
            yield scan
        finally:
            scan.close()


def nameless() -> ismrmrd.Dataset:
    """A new ISMRMRD file whose name is gone before anything is written to it."""
    with tempfile.TemporaryDirectory(prefix="dpmrecon-") as folder:
        return ismrmrd.Dataset(os.path.join(folder, "scan.h5"))


def _is_version2(path: Path) -> bool:
    if not path.is_file() or not os.access(path, os.R_OK):
        return False  # opening it says what is wrong
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _spooled(path: Path, spool: ismrmrd.Dataset) -> str | None:
    """Write a scan of MRD version 2 into `spool`; what is to be said of one that breaks off. Raises BadInputError."""
    remark = None
    with path.open("rb") as source:
        try:
            found = items(source)
            spool.write_xml_header(header_of(next(found)))
            for line in found:
                spool.append_acquisition(line)
            spool._file.flush()
        except EndsEarlyError as error:
            remark = str(error)
            spool._file.flush()
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error.__cause__
        except OSError as error:
            raise BadInputError(
                f"{path} cannot be put into a temporary file ({first_line(error)}): make room there, or name another "
                "folder with TMPDIR"
            ) from error
    return remark


def _scan(measurement: h5py.Group, path: Path, changes: str | None, ignored: int) -> Scan:
    name = measurement.name[1:]
    if "xml" not in measurement:
        raise BadInputError(f"{path}: the group '{name}' has no 'xml' header; convert the scan again")
    lines = measurement["data"]
    if lines.size != len(lines):
        raise BadInputError(
            f"{path}: '{name}/data' has the shape {lines.shape}: a list of lines, (N,) or (N, 1), is needed; convert "
            "the scan again"
        )
    try:
        xml = np.ravel(measurement["xml"][()])[0]
        heads = _heads(lines).astype(ismrmrd.hdf5.acquisition_header_dtype)
    except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise BadInputError(
            f"{path}: the header or the lines' heads cannot be read as ISMRMRD ({first_line(error)}); the file is "
            "damaged or of another format"
        ) from error
    empty = np.flatnonzero(
        (heads["version"] == 0) & (heads["active_channels"] == 0) & (heads["number_of_samples"] == 0)
    )
    if len(empty):
        raise BadInputError(
            f"{path}: {len(empty)} of {len(heads)} lines, from line {empty[0] + 1} on, have not even a head: the file "
            "is damaged, as where a copy was cut off; copy it again"
        )
    log = ScanLog()
    try:
        xml = overridden(xml.encode() if isinstance(xml, str) else bytes(xml), changes)
        header = read_header(xml)
        counted_for_images(heads["idx"], header)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error.__cause__
    if is_epi(header):  # navigators count as such, whatever else they are, as in a stream
        navigators = heads["flags"] & np.uint64(PHASE_CORRECTION) != 0
        heads["flags"][navigators] &= ~np.uint64(ignored & ~PHASE_CORRECTION)
    _correct(header, heads, ignored, log)
    for mask in np.unique(heads["flags"][heads["flags"] & np.uint64(ignored) != 0]):
        count = int((heads["flags"] == mask).sum())
        log.count(f"left out: {names_of(int(mask) & ignored)[0]}", int(mask), count)
    return Scan(path, xml, header, heads, _grouped(heads, ignored), lines, log)


def _noise_beside(file: h5py.File, chosen: h5py.Group, scan: Scan) -> Scan | None:
    """The measurement of another group that holds nothing but noise; None where there is none. Of several the last
    that fits the scan's channels, else the last."""
    found = []
    for name, group in _measurements(file).items():
        if group != chosen and not _holds_image(group["data"]):
            heads = _heads(group["data"]).astype(ismrmrd.hdf5.acquisition_header_dtype)
            found.append((bool(np.any(heads["active_channels"] >= scan.n_coils)), name, heads, group["data"]))
    if not found:
        return None
    _, name, heads, lines = ([entry for entry in found if entry[0]] or found)[-1]
    scan.log.remark(f"the noise measurement is that of the file's group '{name}': the scan's own group has none")
    return Scan(scan.path, scan.xml, scan.header, heads, [], lines, scan.log)


def _other_scans(file: h5py.File, chosen: h5py.Group) -> list[str]:
    """Groups with lines of an image beside the one that is taken."""
    groups = _measurements(file).items()
    return [name for name, group in groups if group != chosen and _holds_image(group["data"])]


def _measurements(file: h5py.File) -> dict[str, h5py.Group]:
    """Groups that hold lines, by name; other arrays may be called `data` too."""
    return {
        key: item
        for key, item in file.items()
        if isinstance(item, h5py.Group)
        and isinstance(lines := item.get("data"), h5py.Dataset)
        and lines.size
        and "head" in (lines.dtype.names or ())
    }


def _group(file: h5py.File, path: Path, name: str | None, noise_alone: bool) -> h5py.Group:
    """The group of the scan: the one that is asked for, else `dataset`, else the only one with lines of an image."""
    found = _measurements(file)
    if name is not None:
        if name not in found:
            raise BadInputError(f"{path} has no group '{name}' with lines: it has {', '.join(found) or 'none'}")
        return found[name]
    if "dataset" in found and (len(found) == 1 or noise_alone or _holds_image(found["dataset"]["data"])):
        return found["dataset"]
    if not found:
        if isinstance(file.get("dataset"), h5py.Group):
            raise BadInputError(
                f"{path}: the scan holds no acquisitions ('dataset/data' is empty, missing or of another format); raw "
                "k-space is needed"
            )
        raise BadInputError(
            f"{path}: an ISMRMRD scan has a group 'dataset', this file holds: {', '.join(file) or 'nothing'}"
        )
    wanted = _holds_noise if noise_alone else _holds_image
    scans = [key for key in found if wanted(found[key]["data"])] or list(found)[:1]
    if len(scans) > 1:
        told = ", ".join(f"{key} ({len(found[key]['data'])} lines)" for key in found)
        advice = "give a file with one noise measurement" if noise_alone else "choose one with --group"
        raise BadInputError(f"{path} holds several measurements: {told}; {advice}")
    return found[scans[0]]


def _holds_image(lines: h5py.Dataset) -> bool:
    """Whether there are other lines than a noise measurement's. Raises nothing: a damaged group is found later."""
    return bool(np.any(_noise_flags(lines) == 0))


def _holds_noise(lines: h5py.Dataset) -> bool:
    """Whether there are a noise measurement's lines."""
    return bool(np.any(_noise_flags(lines) != 0))


def _noise_flags(lines: h5py.Dataset) -> np.ndarray:
    try:
        return _heads(lines)["flags"] & np.uint64(NOISE)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return np.zeros(1)


def _heads(lines: h5py.Dataset) -> np.ndarray:
    """The heads of all lines. Asked for them alone, HDF5 reads the samples as well and never frees them (h5py issue
    1721). So the records are taken as they lie on the disk, where each only points at its samples."""
    if (
        lines.chunks is None or lines.id.get_create_plist().get_nfilters()
    ):  # HDF5 alone unpacks them: whole, some at once
        parts = [lines[first : first + LINES]["head"].ravel() for first in range(0, len(lines), LINES)]
        return np.concatenate(parts)
    record = lines.id.get_type()
    member = record.get_member_index(b"head")
    layout = np.dtype(
        {
            "names": ["head"],
            "formats": [record.get_member_type(member).dtype],
            "offsets": [record.get_member_offset(member)],
            "itemsize": record.get_size(),
        }
    )
    chunk, beside = lines.chunks[0], (0,) * (lines.ndim - 1)
    # as bytes: numpy would look at every field of every part
    records = b"".join(lines.id.read_direct_chunk((first, *beside))[1] for first in range(0, len(lines), chunk))
    return np.frombuffer(records, layout)["head"][: len(lines)]


def _open_hdf5(path: Path) -> h5py.File:
    if not path.exists():
        raise BadInputError(f"{path} does not exist; give the path of an ISMRMRD (.h5) scan")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; give the path of an ISMRMRD (.h5) scan")
    if not path.is_file():  # a pipe would be waited for without end
        raise BadInputError(f"{path} is a pipe or a device; write the scan into a file and give that")
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise BadInputError(f"{path} is open for writing in another program; wait for it or close it there") from error
    except PermissionError as error:
        raise BadInputError(f"{path} may not be read by this user; change its permissions") from error
    except OSError as error:
        if path.stat().st_size == 0:
            raise BadInputError(f"{path} is empty; copy the scan again") from error
        if h5py.is_hdf5(path):
            raise BadInputError(
                f"{path} is a truncated or damaged HDF5 file ({first_line(error)}); copy the scan again"
            ) from error
        raise BadInputError(f"{path} is not an HDF5 file; an ISMRMRD (.h5) scan is needed") from error


def _correct(header: Header, heads: np.ndarray, ignored: int, log: ScanLog) -> None:
    """Headers are wrong about averages and partitions, and GE's about repetitions and contrasts; the image lines of a
    file know them. What is put right is said."""
    encoding = header.encoding[0]
    flags = heads["flags"]
    alone = calibrates_alone(flags)
    image = (flags & np.uint64(NOISE | ignored | PHASE_CORRECTION) == 0) & ~alone
    if not image.any():
        return
    counters = heads["idx"][image]
    _correct_partitions(header, counters, log)
    if alone.any() and not calibration_is_separate(header):
        _correct_calibration(header, heads["idx"][alone], counters, log)
    limits = encoding.encodingLimits
    if limits is not None:
        first, last = int(counters["average"].min()), int(counters["average"].max())
        came, told = last - first + 1, limits.average and limits.average.maximum - limits.average.minimum + 1
        if told not in (None, came):
            log.remark(f"the header's number of averages is {told} and {came} came: those are taken")
        limits.average = ismrmrd.xsd.limitType(minimum=first, maximum=last, center=0)
        _correct_second(header, counters, log)


def _correct_calibration(header: Header, calibration: np.ndarray, image: np.ndarray, log: ScanLog) -> None:
    """Calibration lines that no image has under its counters are of an acquisition of their own, whatever is told; what
    they alone are counted by is no image's."""
    own, others = (set(counters[list(COUNTERS)].tolist()) for counters in (calibration, image))
    numbers = [{one[COUNTERS.index("slice")] for one in keys} for keys in (own, others)]
    if own & others or not numbers[0] & numbers[1]:
        return
    log.remark("calibration lines bear other counters than the image's: they are taken as a separate calibration")
    encoding = header.encoding[0]
    if encoding.parallelImaging is None:
        encoding.parallelImaging = ismrmrd.xsd.parallelImagingType(accelerationFactor=None, calibrationMode=None)
    encoding.parallelImaging.calibrationMode = ismrmrd.xsd.calibrationModeType("separate")
    for name in ("contrast", "phase", "set", "repetition"):
        limit = getattr(encoding.encodingLimits, name, None)
        if limit is not None:
            limit.minimum, limit.maximum = int(image[name].min()), int(image[name].max())


def _correct_second(header: Header, counters: np.ndarray, log: ScanLog) -> None:
    """ge_to_ismrmrd's stylesheet announces a second repetition and contrast of every scan: it asks for counts that the
    converter does not write."""
    vendor = str(getattr(header.acquisitionSystemInformation, "systemVendor", None) or "")
    if not re.search(GE, vendor, re.IGNORECASE):
        return
    for name in ("repetition", "contrast"):
        limit = getattr(header.encoding[0].encodingLimits, name)
        told = limit is not None and (limit.minimum, limit.maximum) == (0, 1)
        if told and not counters[name].any() and not weightings_of(header):
            log.remark(f"the header announces two {name}s, as GE's converter does of every scan, and lines of one came")
            limit.maximum = 0


def _correct_partitions(header: Header, counters: np.ndarray, log: ScanLog) -> None:
    """A scan of one slice whose limits announce three partitions is 3D: it ended early where all lines are of the
    first. Else such a scan is 2D. Limits of one partition are wrong where lines of several came."""
    encoding = header.encoding[0]
    partitions, limits = encoding.encodedSpace.matrixSize.z, encoding.encodingLimits
    if partitions <= 1:
        return
    limit = getattr(limits, "kspace_encoding_step_2", None)
    if counters["kspace_encode_step_2"].any():
        if limit is not None and limit.maximum <= 0:
            log.remark(f"the header's limits announce one partition and lines of others came: {partitions} are taken")
            limits.kspace_encoding_step_2 = None
    elif limit is None or limit.maximum <= 1 or counters["slice"].any():
        log.remark(f"the header announces {partitions} partitions and every line is of the first: the scan is 2D")
        encoding.encodedSpace.matrixSize.z = 1
        if limit is not None:
            limits.kspace_encoding_step_2 = ismrmrd.xsd.limitType(minimum=0, maximum=0, center=0)


def _grouped(heads: np.ndarray, ignored: int) -> list[np.ndarray]:
    """Indices of each slice key's lines, as acquired, sorted by key."""
    wanted = np.flatnonzero((heads["flags"] & np.uint64(NOISE | ignored)) == 0)
    counters = _counters(heads, wanted)
    order = np.lexsort([counters[name] for name in COUNTERS])  # stable
    columns = np.stack([counters[name] for name in COUNTERS], 1)[order]
    starts = 1 + np.flatnonzero(np.any(columns[1:] != columns[:-1], 1))
    return [group for group in np.split(wanted[order], starts) if len(group)]


def _counters(heads: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The counters of lines; navigators have those of the lines that follow in their slice, because some scanners count
    them as averages."""
    counters = heads["idx"][wanted].copy()
    navigator = heads["flags"][wanted] & np.uint64(PHASE_CORRECTION) != 0
    for number in np.unique(counters["slice"][navigator]):
        own = counters["slice"] == number
        places, lines = np.flatnonzero(navigator & own), np.flatnonzero(~navigator & own)
        if len(lines):
            following = lines[np.minimum(np.searchsorted(lines, places), len(lines) - 1)]
            counters[places] = counters[following]
    return counters
