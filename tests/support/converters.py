"""Scans as converters, scanners and simulators really write them: one small head, each time with one peculiarity.

`CASES` are those of which one number or one sentence tells all: tests/test_converters.py runs them, and
tests/commands/converters_table.py prints the table of docs/converters.md from them.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import numpy as np
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate, truth_path

from .acquisitions import read_lines, write_lines

ROWS, R, CALIBRATION = 128, 3, 24
CENTER = ROWS // 2
CAL, BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
SPACE = "encoding.encodingLimits.kspace_encoding_step_1"
NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


@dataclass
class Head:
    """A fully sampled scan. noise, lines: acquisitions without flags but a noise measurement's; truth: (slices, rows,
    cols)."""

    xml: str
    noise: list[ismrmrd.Acquisition]
    lines: list[ismrmrd.Acquisition]
    truth: np.ndarray

    @classmethod
    def of(cls, folder: Path, n_slices: int = 1) -> "Head":
        """Simulated into `folder`."""
        path = folder / f"head{n_slices}.h5"
        settings = {"acceleration": 1, "calibration": "none", "interleaved": False}
        simulate(path, SimulationSettings(matrix=(ROWS, 128), n_slices=n_slices, n_coils=6, **settings))
        text, lines = read_lines(path)
        noise = [line for line in lines if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
        lines = lines[len(noise) :]
        for line in lines:
            line.clear_all_flags()
        return cls(text.decode(), noise, lines, np.load(truth_path(path)))

    def header(self, acceleration: int = R, mode: str = "embedded", **values: object) -> str:
        """The XML with values in place of its own, by path; underscores in keywords stand for themselves."""
        return with_values(
            self.xml,
            {
                "encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1": acceleration,
                "encoding.parallelImaging.calibrationMode": mode,
                **values,
            },
        )

    def sampled(self, acceleration: int = R, first: int = 0) -> list[ismrmrd.Acquisition]:
        """Copies of every R-th line, and of those of the calibration; none before `first`."""
        found = []
        for line in self.lines:
            number = line.idx.kspace_encode_step_1
            regular = (number - CENTER) % acceleration == 0
            central = acceleration > 1 and -CALIBRATION // 2 <= number - CENTER < CALIBRATION // 2
            if number >= first and (regular or central):
                found.append(copied(line))
                if central:
                    found[-1].set_flag(BOTH if regular else CAL)
        return found


def with_values(xml: str, values: dict[str, object]) -> str:
    """The header with elements' texts, by dotted path; None takes the element away, a list makes several of it."""
    root = ElementTree.fromstring(xml.partition("?>")[2])
    for path, value in values.items():
        *parents, name = path.split(".")
        element = root
        for parent in parents:
            element = element.find(NAMESPACE + parent)
        for old in element.findall(NAMESPACE + name):
            place = list(element).index(old)
            element.remove(old)
        for text in reversed([] if value is None else value if isinstance(value, list) else [value]):
            new = ElementTree.Element(NAMESPACE + name)
            new.text = str(text)
            element.insert(place, new)
    ElementTree.register_namespace("", NAMESPACE.strip("{}"))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def copied(line: ismrmrd.Acquisition, data: np.ndarray | None = None, **counters: int) -> ismrmrd.Acquisition:
    """A copy, with other samples (n_coils, n_samples) and counters."""
    data = np.ascontiguousarray(line.data if data is None else data, np.complex64).copy()
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(line.getHead())
    head.active_channels, head.number_of_samples = data.shape
    found = ismrmrd.Acquisition(head, data)
    for name, value in counters.items():
        setattr(found.idx, name, value)
    return found


Made = tuple[str | bytes, list[ismrmrd.Acquisition]]  # header, lines


@dataclass(frozen=True)
class Case:
    """title: what is peculiar; before: what release 0.1.0 made of it; right: NRMSE at default options, or words of the
    refusal; make: header and lines; options: of `replay`; like: the case whose image it must give; remark: words of
    what is said about it."""

    number: str
    title: str
    before: str
    right: float | str
    make: Callable[[Head], Made]
    options: tuple[str, ...] = ()
    like: str = "00"
    remark: str | None = None

    def write(self, head: Head, path: Path) -> Path:
        xml, lines = self.make(head)
        return write_lines(path, xml, lines)


def _plain(head: Head, acceleration: int = R) -> Made:
    return head.header(acceleration), head.noise + head.sampled(acceleration)


def _apart(head: Head) -> Made:
    """R = 2 without lines in between; a calibration of all lines, whose gain is too far from theirs to be drift."""
    calibration = [copied(line, 4 * line.data) for line in head.lines]
    for line in calibration:
        line.set_flag(CAL)
    lines = [line for line in head.lines if (line.idx.kspace_encode_step_1 - CENTER) % 2 == 0]
    return head.header(2, "separate"), head.noise + calibration + lines


def _flagged(head: Head) -> Made:
    lines = head.sampled()
    for line in lines:
        line.set_flag(ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA)
    return head.header(), head.noise + lines


def _phase_correction(head: Head) -> Made:
    """A turbo spin echo's train without phase encoding, on the centre line."""
    train = []
    for echo in range(9):
        line = copied(
            head.lines[CENTER], head.lines[CENTER].data * 0.85**echo * np.exp(0.4j * (echo % 2)), segment=echo
        )
        line.set_flag(ismrmrd.ACQ_IS_PHASECORR_DATA)
        train.append(line)
    return head.header(), head.noise + train + head.sampled()


def _two_partitions(last: int) -> Callable[[Head], Made]:
    values = {"encoding.encodedSpace.matrixSize.z": 2, "encoding.encodingLimits.kspace_encoding_step_2.maximum": last}
    return lambda head: (head.header(**values), head.noise + head.sampled())


def _beyond(head: Head) -> Made:
    """17 shots of 8 lines for a matrix of 128."""
    lines = [copied(a, kspace_encode_step_1=a.idx.kspace_encode_step_1 + 4) for a in head.sampled()]
    lines += [copied(head.lines[3], head.lines[3].data * 0.5, kspace_encode_step_1=n) for n in (0, 2, 3, 132, 133, 135)]
    return head.header(**{f"{SPACE}.maximum": 135, f"{SPACE}.center": 68}), head.noise + lines


def _partial_fourier(acceleration: int, center: int, told: bool = True) -> Callable[[Head], Made]:
    """The first quarter is missing, and the others are counted from 0: the centre is line 32."""

    def make(head: Head) -> Made:
        lines = head.sampled(acceleration, first=32)
        for line in lines:
            line.idx.kspace_encode_step_1 -= 32
            if told:
                line.idx.user[5] = 32
        xml = head.header(acceleration, **{f"{SPACE}.maximum": 95, f"{SPACE}.center": center})
        return xml, head.noise + lines

    return make


def _forward(vendor: str) -> Callable[[Head], Made]:
    """Samples of the transform from k-space to the image with the other sign."""

    def make(head: Head) -> Made:
        xml = head.header(**{"acquisitionSystemInformation.systemVendor": vendor})
        return xml, [copied(line, line.data.conj()) for line in head.noise + head.sampled()]

    return make


def _values(**values: object) -> Callable[[Head], Made]:
    return lambda head: (head.header(**values), head.noise + head.sampled())


def _in_metres(head: Head) -> Made:
    values = {f"encoding.{s}.fieldOfView_mm.{a}": v for s, a, v in METRES}
    return head.header(**values), head.noise + head.sampled()


METRES = [
    ("encodedSpace", "x", 0.46),
    ("encodedSpace", "y", 0.23),
    ("encodedSpace", "z", 0.004),
    ("reconSpace", "x", 0.23),
    ("reconSpace", "y", 0.23),
    ("reconSpace", "z", 0.004),
]


def _backwards(head: Head) -> Made:
    """Two echoes; the second is read from the other end."""
    lines, second = head.sampled(), []
    for line in lines:
        second.append(copied(line, line.data[:, ::-1], contrast=1))
        second[-1].center_sample = line.number_of_samples - 1 - line.center_sample
        second[-1].set_flag(ismrmrd.ACQ_IS_REVERSE)
    xml = head.header(**{"encoding.encodingLimits.contrast.maximum": 1, "sequenceParameters.TE": [4.9, 9.8]})
    return xml, head.noise + lines + second


def _zeros(announced: int) -> Callable[[Head], Made]:
    """Every line is there, those that were not acquired hold zeros; no flags."""

    def make(head: Head) -> Made:
        acquired = {line.idx.kspace_encode_step_1 for line in head.sampled()}
        lines = [
            line if line.idx.kspace_encode_step_1 in acquired else copied(line, 0 * line.data) for line in head.lines
        ]
        return head.header(announced), head.noise + lines

    return make


def _body_coil(head: Head, **counters: int) -> list[ismrmrd.Acquisition]:
    return [copied(line, line.data[:2], **counters) for line in head.lines[CENTER - 10 : CENTER + 10]]


def _prescan(head: Head) -> list[ismrmrd.Acquisition]:
    """The noise at a quarter of the dwell time: four times the bandwidth."""
    found = [copied(line, 2 * line.data) for line in head.noise]
    for line in found:
        line.sample_time_us /= 4
    return found


def _noise(order: Callable[[Head], list[ismrmrd.Acquisition]]) -> Callable[[Head], Made]:
    return lambda head: (head.header(), order(head) + head.sampled())


def _interleaved(head: Head) -> Made:
    """Average 0 has the even lines, average 1 the odd ones; no calibration."""
    lines = [copied(a, average=n) for n in (0, 1) for a in head.lines if a.idx.kspace_encode_step_1 % 2 == n]
    return head.header(2, "interleaved", **{"encoding.encodingLimits.average.maximum": 1}), head.noise + lines


def _trajectory(head: Head) -> Made:
    """Every line carries its coordinates."""
    lines = []
    for line in head.sampled():
        n_samples = line.number_of_samples
        path = np.empty((n_samples, 2), np.float32)
        path[:, 0] = (np.arange(n_samples) - n_samples // 2) / n_samples
        path[:, 1] = (line.idx.kspace_encode_step_1 - CENTER) / ROWS
        kept = ismrmrd.AcquisitionHeader.from_buffer_copy(line.getHead())
        kept.trajectory_dimensions = 2
        lines.append(ismrmrd.Acquisition(kept, line.data.copy(), path))
    return head.header(), head.noise + lines


def _unlabelled(head: Head) -> Made:
    """Two different echoes with one label."""
    echo = head.sampled()
    other = [copied(line, 0.5 * line.data[::-1].conj()) for line in echo]
    return head.header(), head.noise + echo + other


MATRIX, RECON = "encoding.encodedSpace.matrixSize", "encoding.reconSpace.matrixSize"
FACTOR = "encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1"
LOST_3D = "refused: 3D"

CASES = [
    Case("00", "nothing peculiar", ".045", 0.0454, _plain),
    Case("00b", "nothing peculiar, R = 1", ".032", 0.0316, lambda head: _plain(head, 1), like="00b"),
    Case("00c", "nothing peculiar, R = 2, a calibration apart", ".042", 0.0416, _apart, like="00c"),
    Case("01", "every line bears SURFACECOILCORRECTIONSCAN", "refused: no image lines", 0.0454, _flagged),
    Case("02", "PHASECORR train of a turbo spin echo", "refused: EPI", 0.0454, _phase_correction),
    Case("03", "encoded z = 2, limits 0 to 0, lines 2D", LOST_3D, 0.0454, _two_partitions(0), remark="the scan is 2D"),
    Case("03", "encoded z = 2, limits 0 to 1, lines 2D", LOST_3D, 0.0454, _two_partitions(1), remark="the scan is 2D"),
    Case(
        "04",
        "lines beyond the matrix, limits 0 to 135 of 128",
        "refused",
        0.0454,
        _beyond,
        remark="6 lines outside the encoded matrix of 128 lines are left out",
    ),
    Case("05", "partial Fourier, counted from 0; header right", ".052", 0.052, _partial_fourier(R, 32), like="05"),
    Case(
        "05",
        "the same, header's centre line wrong",
        "refused",
        0.052,
        _partial_fourier(R, 64),
        like="05",
        remark="by idx.user[5] and the energy's peak",
    ),
    Case(
        "05",
        "the same, idx.user[5] unset",
        "refused",
        0.052,
        _partial_fourier(R, 64, told=False),
        like="05",
        remark="is taken, by the energy's peak",
    ),
    Case("05b", "partial Fourier, R = 1; header right", ".036", 0.036, _partial_fourier(1, 32), like="05b"),
    Case(
        "05b",
        "the same, header's centre line wrong",
        ".478, no word",
        0.036,
        _partial_fourier(1, 64),
        like="05b",
        remark="line 32 is taken, by idx.user[5] and the energy's peak",
    ),
    Case("06", "vendor SIEMENS: conjugated", ".581, turned", 0.0454, _forward("SIEMENS")),
    Case(
        "06", "the same, `--conjugate off`", "no such option", 0.581, _forward("SIEMENS"), ("--conjugate", "off"), "06b"
    ),
    Case("06b", "another vendor's, conjugated", ".581, turned", 0.581, _forward("SIMULATED"), like="06b"),
    Case(
        "06",
        "the same, `--conjugate on`",
        "no such option",
        0.0454,
        _forward("SIMULATED"),
        ("--conjugate", "on"),
    ),
    Case("09", "encoded y 128.0", "refused", 0.0454, _values(**{f"{MATRIX}.y": "128.0"})),
    Case("09", "encoded y 128.000", "refused", 0.0454, _values(**{f"{MATRIX}.y": "128.000"})),
    Case("09", "recon x 127.9996", "refused", 0.0454, _values(**{f"{RECON}.x": "127.9996"})),
    Case("09", "encoded z 1.0", "refused", 0.0454, _values(**{f"{MATRIX}.z": "1.0"})),
    Case("09", "last line 127.0", "refused", 0.0454, _values(**{f"{SPACE}.maximum": "127.0"})),
    Case("09", "R 3.0", ".046", 0.0454, _values(**{FACTOR: "3.0"})),
    Case("09", "R 2.7, a net factor", ".046", 0.0454, _values(**{FACTOR: "2.7"})),
    Case("10", "field of view in metres", "PixelSpacing .0018 mm", "written in metres", _in_metres),
    Case("12", "second echo read backwards", "refused after the first", 0.0454, _backwards, remark="are turned"),
    Case("15", "lines never acquired are zeros, R = 3 announced", ".148", 0.0454, _zeros(R)),
    Case("15", "the same, no R announced", ".148", 0.0454, _zeros(1), remark="tell R = 3"),
    Case(
        "17",
        "lines of a 2-channel body coil before the image's",
        "slice lost",
        0.0454,
        lambda head: (head.header(), head.noise + _body_coil(head) + head.sampled()),
        remark="20 lines of 2 channels are left out",
    ),
    Case(
        "17",
        "the same, as a repetition of their own",
        "one slice lost",
        0.0454,
        lambda head: (head.header(), head.noise + head.sampled() + _body_coil(head, repetition=1)),
        remark="20 lines of 2 channels are left out",
    ),
    Case(
        "17",
        "noise lines of 2 channels before those of 6",
        "refused",
        0.0454,
        _noise(lambda head: [copied(line, line.data[:2]) for line in head.noise[:4]] + head.noise),
    ),
    Case("20", "noise at a quarter of the dwell time", ".045", 0.0454, _noise(_prescan)),
    Case("20", "the same, then noise at the image's", ".050", 0.0454, _noise(lambda head: _prescan(head) + head.noise)),
    Case("20", "noise at the image's, then the same", ".049", 0.0454, _noise(lambda head: head.noise + _prescan(head))),
    Case("25", "two different echoes of one label", ".242, their mean", "differ by more than noise", _unlabelled),
    Case(
        "29",
        "averages bring each other's lines",
        "refused: no calibration",
        0.0416,
        _interleaved,
        like="00c",
        remark="all of them together",
    ),
    Case("29", "the same, `--combine-averages`", ".032", 0.0316, _interleaved, ("--combine-averages",), like="00b"),
    Case("32", "every line carries its trajectory", ".045", 0.0454, _trajectory),
]

# what one number does not tell: number, what is peculiar, what release 0.1.0 did, what is right, and happens now
TOLD = [
    ("08", "header in Latin-1 or UTF-8, declared or not", "PatientName broken in DICOM", "PatientName as written"),
    ("10", "the same, `--set` gives millimetres", "no such option", "PixelSpacing 1.797 mm"),
    ("12", "the same: both echoes", "one echo", "two images, the second equals the first"),
    ("13", "several groups, or one of any name", "refused", "the only one with image lines, else `--group`"),
    ("13", "a group of noise alone beside the scan's without", "refused", "its noise is used, and it is said"),
    (
        "16",
        "the standard's generator, with and without calibration",
        "right, refused",
        "right; no DICOM without directions",
    ),
    ("18", "two inversion times and flip angles", "both images bear the first", "each image bears its own"),
    ("22", "waveforms, gzip chunks, read-only file, umlauts", "right", "right"),
    ("19", "diffusion: a slice lost directions", "wrong ADC, no word", "no map of that slice, said"),
    ("25", "slices without labels", "their mean as one image", "refused: lines lie at 3 positions"),
    ("26", "stream: reference block first, ends its slice too", "no image", "as the file"),
    ("27", "a fastMRI file", "refused", "as the same scan without noise measurement"),
    ("33", "kit: IDs anonymised to xxxxxxxx", "1 patient", "said; by file or folder, or `--patients measurement`"),
    ("34", "kit: no subjectInformation", "by file or folder, said", "by file or folder, said"),
]


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    """Of magnitudes, the best scale taken."""
    image, truth = np.abs(image).astype(float), truth.astype(float)
    scale = (image * truth).sum() / (image * image).sum()
    return float(np.linalg.norm(scale * image - truth) / np.linalg.norm(truth))
