"""Readouts of EPI: what a header describes, and the way of lines onto the Cartesian grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from ..errors import BadInputError, UnsupportedScanError
from .header import Header, encoded_grid, is_epi
from .lines import Layout

if TYPE_CHECKING:
    import torch

    from ..physics.epi import Trapezoid

IDENTIFIER = "ConventionalEPI"
# Samples a little too far apart leave the head alone
FARTHEST = 1.02
# A readout may end this many dwell times after its gradient, by rounding
LATE = 1.0


@dataclass(frozen=True)
class Readout:
    """How the readouts of an encoding space become Cartesian ones, forward ones and reversed ones that are turned.

    matrices: (2, cols, n_samples), None where samples are as far apart as those of Cartesian readouts, which `offsets`
    then puts in their place: (2, n_samples) complex, phases of the line's image; oversampling: of a ramp-sampled
    readout; beside: (2, n_samples), cycles per field of view by which samples on the ramps lie beside those of a flat
    gradient.
    """

    n_samples: int
    cols: int
    matrices: torch.Tensor | None
    offsets: torch.Tensor | None = None
    oversampling: float = 1.0
    beside: torch.Tensor | None = None

    @classmethod
    def of(cls, header: Header, space: int) -> Readout:
        """Raises UnsupportedScanError for descriptions that are none of a trapezoid, BadInputError for wrong ones."""
        import torch

        from ..physics.epi import beside_flat, regridding

        trapezoid, cols = _described(header, space), encoded_grid(header)[1]
        cycles, encoded = _cycles(header, space), header.encoding[space].encodedSpace.matrixSize.x
        positions, n = trapezoid.positions(cycles), trapezoid.n_samples
        if trapezoid.is_uniform and n in (cols, encoded, 2 * cols, 2 * encoded):
            place = (torch.arange(n) - n // 2) / cycles
            angle = torch.stack([2 * torch.pi * float(places[n // 2]) * place for places in positions])
            return cls(n, cols, None, torch.polar(torch.ones_like(angle), angle))
        apart = float(np.diff(positions[0]).max())
        if apart > FARTHEST:
            raise BadInputError(
                f"the header's trajectoryDescription puts the readout's samples {apart:.2f} times as far apart as the "
                "images' field of view allows: correct its times or numSamples (or --set their values)"
            )
        matrices, oversampling = regridding(positions, cols)
        beside = torch.from_numpy(np.stack([beside_flat(places) for places in positions])).float()
        return cls(n, cols, torch.from_numpy(matrices), oversampling=oversampling, beside=beside)

    @property
    def covered(self) -> torch.Tensor | bool:
        """(cols,) bool: columns that the readout reaches."""
        return True if self.matrices is None else self.matrices[0].any(1)

    @property
    def noise_grid(self) -> int:
        """Samples that the receiver takes of the field of view that it sees, on `cols` of the images'."""
        return round(self.oversampling * self.cols)

    def gridded(self, line: torch.Tensor, *, backwards: bool, off_centre: float = 0.0) -> torch.Tensor:
        """(n_coils, n_samples), turned where it came backwards, to (n_coils, cols) or Cartesian n_samples.

        off_centre: fields of view from the scanner's centre, where the receiver's frequency was that of the flat top.
        """
        import torch

        from ..physics.fourier import to_image, to_kspace

        if self.matrices is not None:
            if off_centre and self.beside is not None:
                angle = 2 * torch.pi * off_centre * self.beside[int(backwards)]
                line = line * torch.polar(torch.ones_like(angle), angle)
            matrix = self.matrices[int(backwards)].T
            return torch.complex(line.real @ matrix, line.imag @ matrix)
        assert self.offsets is not None
        return to_kspace(to_image(line, axes=(-1,)) * self.offsets[int(backwards)], axes=(-1,))


def _cycles(header: Header, space: int) -> float:
    """Of a whole readout, in the images' field of view: the width of its k-space."""
    if space == 0:
        return encoded_grid(header)[1]
    other = header.encoding[space].encodedSpace
    return other.matrixSize.x / other.fieldOfView_mm.x * _view_mm(header)


def _view_mm(header: Header) -> float:
    """The images' field of view along the readout, of `cols` columns."""
    own = header.encoding[0].encodedSpace
    return encoded_grid(header)[1] / own.matrixSize.x * own.fieldOfView_mm.x


def _described(header: Header, space: int) -> Trapezoid:
    """The readout that a header describes for an encoding space."""
    from ..physics.epi import Trapezoid

    description = header.encoding[space].trajectoryDescription
    if description is None:
        raise UnsupportedScanError(
            "the scan is EPI and its header has no trajectoryDescription, which tells how its readout is sampled: "
            f"convert the scan again with one ({IDENTIFIER})"
        )
    if description.identifier != IDENTIFIER:
        raise UnsupportedScanError(
            f"the scan is EPI with a trajectoryDescription '{description.identifier}': {IDENTIFIER} is understood"
        )
    values = {item.name: item.value for item in [*description.userParameterLong, *description.userParameterDouble]}

    def number(name: str, default: float | None = None) -> float:
        value = values.get(name, default)
        try:  # 128.0 of a whole number is kept as text
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            found = -1.0
        if not 0 <= found < 1e9:
            raise BadInputError(
                f"the header's trajectoryDescription gives {name} as {value}: EPI needs a number of microseconds "
                "(numSamples: of samples), convert the scan again with it"
            )
        return found

    n_samples, flat_top = int(number("numSamples")), number("flatTopTime")
    ramps = number("rampUpTime", 0.0), number("rampDownTime", 0.0)
    if n_samples < 2 or flat_top + sum(ramps) <= 0:
        raise BadInputError(
            f"the header's trajectoryDescription gives a readout of {n_samples} samples and "
            f"{flat_top + sum(ramps):g} microseconds: correct it (or --set its values)"
        )
    total = ramps[0] + flat_top + ramps[1]
    dwell = number("dwellTime") if any(ramps) else number("dwellTime", flat_top / n_samples)
    delay = number("acqDelayTime", max(0.0, 0.5 * (total - dwell * n_samples)))
    if dwell <= 0 or delay + dwell * n_samples > total + LATE * dwell:
        raise BadInputError(
            f"the header's trajectoryDescription has {n_samples} samples of {dwell:g} microseconds that begin "
            f"{delay:g} after a readout gradient of {total:g}: they do not fit into it, correct its times (or --set "
            "their values)"
        )
    return Trapezoid(ramps[0], flat_top, ramps[1], delay, dwell, n_samples)


class Readouts:
    """The readouts of a scan's encoding spaces. fixed_receiver: its frequency is that of the flat top during a whole
    line. So ramps keep a phase where the field of view is off the scanner's centre."""

    def __init__(self, header: Header, *, fixed_receiver: bool = False) -> None:
        self.header, self.found, self.fixed_receiver = header, {0: Readout.of(header, 0)}, fixed_receiver

    def off_centre(self, head: ismrmrd.AcquisitionHeader) -> float:
        """Fields of view from the scanner's centre along the readout; 0 where the receiver follows the gradient."""
        if not self.fixed_receiver:
            return 0.0
        return float(np.dot(head.position[:], head.read_dir[:])) / _view_mm(self.header)

    def of(self, space: int) -> Readout:
        """Raises as Readout.of."""
        if space not in self.found:
            self.found[space] = Readout.of(self.header, space)
        return self.found[space]

    def grid(self, layout: Layout, space: int) -> int:
        """Samples of another space's line that the images' `cols` are of."""
        cols, encoded = encoded_grid(self.header)[1], self.header.encoding[space].encodedSpace.matrixSize.x
        if is_epi(self.header, space) and self.of(space).matrices is not None:
            return cols
        samples = encoded if layout.fits(encoded) else 2 * encoded
        return round(cols * samples / _cycles(self.header, space))
