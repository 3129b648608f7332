"""EPI scans made line by line of an object whose transform is known everywhere."""

import ismrmrd
import numpy as np
from dpmrecon.physics.epi import Trapezoid

from support.hand_made import header_xml, line

REVERSE, NAVIGATOR = ismrmrd.ACQ_IS_REVERSE, ismrmrd.ACQ_IS_PHASECORR_DATA
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
ROWS, COLS = 33, 27
FLAT = Trapezoid(0, 216, 0, 0, 4.0, 54)  # twice oversampled, as FLAT of 27 columns has it
RAMPS = Trapezoid(60, 120, 60, 8, 3.5, 64)
UNEVEN = Trapezoid(60, 131, 50, 0, 3.0, 80)
BOXES = ((1.0, -0.05, 0.02, 0.62, 0.7), (0.5, 0.1, -0.15, 0.2, 0.23), (-0.4, -0.17, 0.11, 0.13, 0.31))
BLUR = 0.03  # of the field of view
# of plane waves, so that a coil's k-space is the object's at other places
COILS = (((1, 0, 0), (0.4, 1, 0)), ((0.7j, 0, 0), (0.5, 0, -1)), ((0.6, 0, 0), (-0.5j, -1, 1)))


def kspace(kx, ky):
    """(n_coils, ...): the transform of blurred boxes (amplitude, x, y, width, height, of the field of view) seen by
    coils."""
    found = []
    for waves in COILS:
        value = 0
        for weight, u, v in waves:
            x, y = kx - u, ky - v
            for height, cx, cy, wx, wy in BOXES:
                centre = np.exp(-2j * np.pi * (x * cx + y * cy))
                blur = np.exp(-((np.pi * BLUR) ** 2) * (x**2 + y**2))
                value = value + weight * height * wx * wy * np.sinc(wx * x) * np.sinc(wy * y) * centre * blur
        found.append(value)
    return 30 * np.array(found)


def truth(rows=ROWS, cols=COLS):
    """(n_coils, rows, cols) on the Cartesian grid."""
    ky, kx = np.arange(rows) - rows // 2, np.arange(cols) - cols // 2
    return kspace(kx[None], ky[:, None])


def description(trapezoid, **changes):
    """XML of an EPI trajectory and its description."""
    values = {
        "rampUpTime": trapezoid.ramp_up,
        "flatTopTime": trapezoid.flat_top,
        "rampDownTime": trapezoid.ramp_down,
        "acqDelayTime": trapezoid.delay,
        "numSamples": trapezoid.n_samples,
    }
    values = {name: value for name, value in {**values, **changes}.items() if value is not None}
    longs = "".join(
        f"<userParameterLong><name>{name}</name><value>{value}</value></userParameterLong>"
        for name, value in values.items()
    )
    return (
        f"<trajectory>epi</trajectory><trajectoryDescription><identifier>ConventionalEPI</identifier>{longs}"
        f"<userParameterDouble><name>dwellTime</name><value>{trapezoid.dwell}</value></userParameterDouble>"
        "</trajectoryDescription>"
    )


def epi_header_xml(trapezoid, *, rows=ROWS, cols=COLS, **options):
    """hand_made.header_xml of EPI."""
    options = {"trajectory": description(trapezoid), **options}
    return header_xml(rows=rows, x=cols, recon_x=cols, **options)


class Readouts:
    """Lines of one trapezoid with a ghost: reversed lines have the phase constant + slope * x over forward ones, x from
    -1/2 to 1/2 over the field of view."""

    def __init__(self, trapezoid, cols=COLS, noise=0.0, seed=0):
        self.trapezoid, self.cols, self.noise = trapezoid, cols, noise
        self.rng = np.random.default_rng(seed)

    def samples(self, row, backwards, ghost, phase=0.0):
        """(n_coils, n_samples) as they are measured; row: counted from the k-space centre."""
        constant, slope = ghost
        positions = self.trapezoid.positions(self.cols)[backwards]
        half = 0.5 if backwards else -0.5
        data = kspace(positions - half * slope / (2 * np.pi), row) * np.exp(1j * (half * constant + phase))
        data = data + self.noise * (self.rng.normal(size=data.shape) + 1j * self.rng.normal(size=data.shape))
        return data[:, ::-1] if backwards else data

    def shot(self, numbers, ghost, *, navigators=3, first=False, flags=(), drift=0.0, rows=ROWS, nav=None, **labels):
        """Navigators and lines; first: direction of the first line; drift: phase from echo to echo of navigators."""
        found = []
        for echo in range(navigators):
            backwards = bool(echo % 2)
            data = self.samples(0, backwards, ghost, drift * echo)
            own = (NAVIGATOR, *([REVERSE] if backwards else []))
            found.append(line(rows // 2, data, own, **{**labels, **(nav or {})}))
        for echo, number in enumerate(numbers):
            backwards = bool(echo % 2) != first
            data = self.samples(number - rows // 2, backwards, ghost)
            found.append(line(number, data, (*flags, *([REVERSE] if backwards else [])), **labels))
        return found


def gradient_echo(numbers, n_samples, oversampling, rows=ROWS, **labels):
    """Calibration lines of a gradient echo, whose samples are oversampled, in the units of the field of view."""
    kx = (np.arange(n_samples) - n_samples // 2) / oversampling
    return [line(number, kspace(kx, number - rows // 2), (CALIBRATION,), **labels) for number in numbers]
