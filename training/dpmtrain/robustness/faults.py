"""What can be wrong with a scan's file: one random fault, put into a sound scan. `dpmtrain faults` runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
from dpmrecon.mrd.flags import CALIBRATION, CALIBRATION_AND_IMAGE, NOISE, flags
from ismrmrd.hdf5 import acquisition_dtype

# which line begins or ends something
ORDER = flags(*range(ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, ismrmrd.ACQ_LAST_IN_REPETITION + 1))


@dataclass
class RawScan:
    """An ISMRMRD file in memory. records: its lines, heads and samples, in order; header: as `ismrmrd.xsd` reads it."""

    header: ismrmrd.xsd.ismrmrdHeader
    records: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "RawScan":
        with h5py.File(path) as file:
            return cls(ismrmrd.xsd.CreateFromDocument(file["dataset/xml"][0]), file["dataset/data"][:])

    def write(self, path: Path) -> None:
        from xsdata.formats.dataclass.serializers import XmlSerializer

        xml = XmlSerializer().render(self.header, ns_map={"": "http://www.ismrm.org/ISMRMRD"})
        with h5py.File(path, "w") as file:
            file.create_dataset("dataset/xml", (1,), h5py.special_dtype(vlen=bytes))[0] = xml.encode()
            file.create_dataset("dataset/data", data=self.records, dtype=acquisition_dtype)

    @property
    def heads(self) -> np.ndarray:
        """A view."""
        return self.records["head"]

    @property
    def image(self) -> np.ndarray:
        """Indices of all lines but the noise measurement's."""
        return np.flatnonzero(self.heads["flags"] & np.uint64(NOISE) == 0)

    @property
    def noise(self) -> np.ndarray:
        return np.flatnonzero(self.heads["flags"] & np.uint64(NOISE))

    @property
    def rows(self) -> np.ndarray:
        return self.heads["idx"]["kspace_encode_step_1"]

    def samples(self, index: int | np.integer) -> np.ndarray:
        """(n_coils, samples) complex64, a copy."""
        head = self.heads[index]
        flat = np.array(self.records["data"][index], np.float32)
        return flat.view(np.complex64).reshape(head["active_channels"], head["number_of_samples"])

    def set_samples(self, index: int | np.integer, samples: np.ndarray) -> None:
        self.records["data"][index] = np.ascontiguousarray(samples, np.complex64).view(np.float32).ravel()

    def multiply(self, coil: int, factor: float, lines: np.ndarray) -> None:
        """A channel, in these lines."""
        for index in lines:
            samples = self.samples(index)
            samples[coil] *= factor
            self.set_samples(index, samples)

    def keep(self, indices: np.ndarray) -> None:
        """Only these lines, in this order."""
        self.records = self.records[indices]

    def two_lines(self, rng: np.random.Generator) -> tuple[int, int]:
        """Of one image, of unlike labels."""
        one, counters = rng.choice(self.image), ("slice", "contrast", "repetition", "average")
        same = [self.heads["idx"][name] == self.heads["idx"][name][one] for name in counters]
        lines = np.intersect1d(self.image, np.flatnonzero(np.all(same, 0)))
        return one, rng.choice(lines[self.rows[lines] != self.rows[one]])


Fault = Callable[[RawScan, np.random.Generator], str]  # changes the scan; what was done, in words


def dropped(scan: RawScan, rng: np.random.Generator) -> str:
    gone = rng.choice(scan.image)
    told = f"line {scan.rows[gone]} is dropped"
    scan.keep(np.delete(np.arange(len(scan.records)), gone))
    return told


def doubled(scan: RawScan, rng: np.random.Generator) -> str:
    one, other = scan.two_lines(rng)
    told = f"line {scan.rows[one]} comes a second time with the samples of line {scan.rows[other]}"
    samples = scan.samples(other)
    scan.keep(np.insert(np.arange(len(scan.records)), one, one))
    scan.set_samples(one + int(rng.integers(2)), samples)
    return told


def swapped(scan: RawScan, rng: np.random.Generator) -> str:
    one, other = scan.two_lines(rng)
    told = f"lines {scan.rows[one]} and {scan.rows[other]} have each other's label"
    scan.rows[one], scan.rows[other] = scan.rows[other], scan.rows[one]
    return told


def wrong_centre(scan: RawScan, rng: np.random.Generator) -> str:
    limit = scan.header.encoding[0].encodingLimits.kspace_encoding_step_1
    off = int(rng.choice([-1, 1]) * rng.integers(1, max(2, limit.maximum // 8)))
    limit.center += off
    return f"the header's centre line is {off:+d} lines off"


def wrong_matrix(scan: RawScan, rng: np.random.Generator) -> str:
    encoding = scan.header.encoding[0]
    space, axis = rng.choice(["encodedSpace", "reconSpace"]), rng.choice(["x", "y"])
    size = getattr(encoding, space).matrixSize
    factor = float(rng.choice([0.5, 0.75, 1.25, 1.5, 2]))
    setattr(size, axis, round(getattr(size, axis) * factor))
    return f"matrixSize.{axis} of {space} is {factor:g} times the right one"


def wrong_acceleration(scan: RawScan, rng: np.random.Generator) -> str:
    factor = scan.header.encoding[0].parallelImaging.accelerationFactor
    right = factor.kspace_encoding_step_1
    factor.kspace_encoding_step_1 = int(rng.choice([r for r in range(1, 7) if r != right]))
    return f"the header's R is {factor.kspace_encoding_step_1} in place of {right}"


def wrong_limits(scan: RawScan, rng: np.random.Generator) -> str:
    limits = scan.header.encoding[0].encodingLimits
    name, end = rng.choice(["kspace_encoding_step_1", "slice", "average"]), rng.choice(["minimum", "maximum"])
    limit = getattr(limits, name)
    off = int(rng.choice([-1, 1]) * rng.integers(1, 2 + limit.maximum // 4))
    off = abs(off) if getattr(limit, end) + off < 0 else off
    value = getattr(limit, end) + off
    setattr(limit, end, value)
    return f"{end} of the header's {name} is {value}, {off:+d}"


def without_calibration(scan: RawScan, rng: np.random.Generator) -> str:
    held = scan.heads["flags"]
    alone = np.flatnonzero(held & np.uint64(CALIBRATION))
    held &= ~np.uint64(CALIBRATION_AND_IMAGE)
    scan.keep(np.setdiff1d(np.arange(len(held)), alone))
    return f"{len(alone)} calibration lines are lost"


def thin_calibration(scan: RawScan, rng: np.random.Generator) -> str:
    limit = scan.header.encoding[0].encodingLimits.kspace_encoding_step_1
    held = scan.heads["flags"]
    found = np.flatnonzero(held & np.uint64(CALIBRATION | CALIBRATION_AND_IMAGE))
    if not len(found):  # embedded in a scan without undersampling
        found = scan.image[abs(scan.rows[scan.image].astype(int) - limit.center) < 12]
    gone = found[(scan.rows[found] + rng.integers(2)) % 2 == 0]
    scan.keep(np.setdiff1d(np.arange(len(held)), gone))
    return f"every other calibration line is lost, {len(gone)} in all"


def without_noise(scan: RawScan, rng: np.random.Generator) -> str:
    count = len(scan.noise)
    scan.keep(scan.image)
    return f"the {count} noise lines are lost"


def other_dwell(scan: RawScan, rng: np.random.Generator) -> str:
    factor, right = float(rng.choice([0.25, 0.5, 2, 4])), bool(rng.integers(2))
    for index in scan.noise:
        scan.heads["sample_time_us"][index] *= factor
        if right:
            scan.set_samples(index, scan.samples(index) / np.sqrt(factor))
    return f"dwell time of the noise lines x {factor:g}, which their samples {'follow' if right else 'do not follow'}"


def dead_channel(scan: RawScan, rng: np.random.Generator) -> str:
    coil, everywhere = int(rng.integers(scan.heads["active_channels"][scan.image[0]])), bool(rng.integers(2))
    scan.multiply(coil, 0, np.arange(len(scan.records)) if everywhere else scan.image)
    return f"channel {coil} is zero, {'in the noise too' if everywhere else 'in the image alone'}"


def spiked(scan: RawScan, rng: np.random.Generator) -> str:
    index = rng.choice(scan.image)
    samples = scan.samples(index)
    coil, place = rng.integers(samples.shape[0]), rng.integers(samples.shape[1])
    largest = max(float(np.abs(scan.samples(one)).max()) for one in scan.image)
    samples[coil, place] += rng.choice([0.3, 1, 3, 10]) * largest * np.exp(2j * np.pi * rng.random())
    scan.set_samples(index, samples)
    return f"a spike in channel {coil} of line {scan.rows[index]}"


def scaled_channel(scan: RawScan, rng: np.random.Generator) -> str:
    coil, factor = int(rng.integers(scan.heads["active_channels"][scan.image[0]])), float(rng.choice([0.1, 0.3, 3, 10]))
    part = str(rng.choice(["all", "second half", "every other"]))
    lines = {"all": scan.image, "second half": scan.image[len(scan.image) // 2 :], "every other": scan.image[::2]}[part]
    scan.multiply(coil, factor, lines)
    return f"channel {coil} is {factor:g} times as loud in {part} of the lines"


def reversed_samples(scan: RawScan, rng: np.random.Generator) -> str:
    part = str(rng.choice(["one", "every other", "all"]))
    lines = {"one": scan.image[rng.integers(len(scan.image)) :][:1], "every other": scan.image[::2], "all": scan.image}
    for index in lines[part]:
        scan.set_samples(index, scan.samples(index)[:, ::-1])
    return f"samples are reversed in {part} of the lines"


def slices_of_one_label(scan: RawScan, rng: np.random.Generator) -> str:
    label = scan.heads["idx"]["slice"]
    one, other = rng.permutation(np.unique(label[scan.image]))[:2]
    label[label == other] = one
    return f"slice {other} is labelled {one}"


def echoes_of_one_label(scan: RawScan, rng: np.random.Generator) -> str:
    scan.heads["idx"]["contrast"][:] = 0
    scan.header.encoding[0].encodingLimits.contrast.maximum = int(rng.integers(2))
    return "both contrasts are labelled 0"


def moved_shots(scan: RawScan, rng: np.random.Generator) -> str:
    limit = scan.header.encoding[0].encodingLimits.kspace_encoding_step_1
    pixels, along = int(rng.integers(1, 6)), str(rng.choice(["readout", "lines"]))
    shots = int(rng.integers(2, 5))
    for index in scan.image[(np.arange(len(scan.image)) % shots) == 1]:
        samples, head = scan.samples(index), scan.heads[index]
        if along == "readout":
            turns = (np.arange(samples.shape[1]) - float(head["center_sample"])) / samples.shape[1]
        else:
            turns = (float(scan.rows[index]) - limit.center) / scan.header.encoding[0].encodedSpace.matrixSize.y
        scan.set_samples(index, samples * np.exp(-2j * np.pi * pixels * turns))
    return f"every {shots}. line is moved by {pixels} pixels along the {along}"


FAULTS: dict[str, Fault] = {
    "line dropped": dropped,
    "line doubled": doubled,
    "labels swapped": swapped,
    "centre wrong": wrong_centre,
    "matrix wrong": wrong_matrix,
    "R wrong": wrong_acceleration,
    "limits wrong": wrong_limits,
    "calibration lost": without_calibration,
    "calibration thin": thin_calibration,
    "noise lost": without_noise,
    "noise of another dwell": other_dwell,
    "channel zero": dead_channel,
    "channel spiked": spiked,
    "channel scaled": scaled_channel,
    "samples reversed": reversed_samples,
    "slices of one label": slices_of_one_label,
    "echoes of one label": echoes_of_one_label,
    "shots moved": moved_shots,
}
