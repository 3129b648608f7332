"""Where the coil maps of SWI slices end: `python -m dpmtrain.evaluate.swi_slices --out DIR`.

Simulates 2D SWI, whose phase is quick near the sinuses. Reconstructs it with maps of the usual crop and of that for
SWI. Writes a table in markdown and CSV.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from dpmrecon.api import load_model
from dpmrecon.data import LostSlice, Slice
from dpmrecon.errors import DpmreconError
from dpmrecon.physics.coil_maps import CROP
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.recon.prepare import SWI_CROP, with_coil_maps
from dpmrecon.recon.types import MappedSlice, Reconstruction
from dpmrecon.simulation.settings import SimulationSettings

from ..arguments import exit_code, module_parser
from .methods import by_card
from .metrics import nrmse
from .references import CPU, simulated
from .tables import fields_of, write_tables

R, N_SLICES, THICKNESS_MM = 3, 6, 3.0
DARK = 0.05  # of the truth's 99th percentile: what is darker is not head


@dataclass(frozen=True)
class CropRow:
    """NRMSE of the scan, of its CG-SENSE images, and the share of the head, by slice, that no coil sees."""

    scan: str
    crop: float
    nrmse: float
    cg_sense: float
    lost: float


def crop_row(
    scanned: list[Slice | LostSlice], truth: np.ndarray, name: str, maps_of: str | None, checkpoint: Checkpoint
) -> CropRow:
    bright = truth > DARK * np.percentile(truth, 99)
    images, conventional, lost = np.empty_like(truth), np.empty_like(truth), []
    for mapped in with_coil_maps(scanned, CPU, maps_of):
        item = by_card(mapped, checkpoint, "swi") if isinstance(mapped, MappedSlice) else mapped
        if not isinstance(item, Reconstruction) or item.fallback:
            raise DpmreconError(f"a slice of {name} has no image of ours")
        mapped, place = item.mapped, item.key.slice
        images[place] = item.image.abs().numpy()
        conventional[place] = mapped.model.combined(mapped.conventional).abs().numpy()
        seen = mapped.model.support.reshape(-1, *truth.shape[1:]).amax(0).numpy() > 0
        lost.append(float((~seen)[bright[place]].mean()))
    crop = SWI_CROP if maps_of == "swi" else CROP
    return CropRow(name, crop, nrmse(images, truth), nrmse(conventional, truth), float(np.mean(lost)))


def rows_of(checkpoint: Checkpoint, matrices: Sequence[int], subjects: Sequence[int]) -> Iterator[CropRow]:
    for matrix, subject in itertools.product(matrices, subjects):
        settings = SimulationSettings(
            contrast="swi", matrix=(matrix, matrix), n_slices=N_SLICES, slice_thickness_mm=THICKNESS_MM,
            acceleration=R, subject=subject, seed=subject,
        )  # fmt: skip
        scan = simulated(settings)
        for maps_of in (None, "swi"):
            row = crop_row(*scan, f"subject {subject}, {matrix} x {matrix}", maps_of, checkpoint)
            print(row, flush=True)
            yield row


def main() -> None:
    parser = module_parser(__doc__, "out")
    parser.add_argument("--matrices", type=int, nargs="+", default=[96, 192], help="pixels each way")
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2], help="of the phantom")
    args = parser.parse_args()
    checkpoint = load_model(None, "cpu")
    rows = list(rows_of(checkpoint, args.matrices, args.subjects))
    table = [["scan", "crop", "NRMSE", "CG-SENSE", "head that no coil sees"]]
    table += [
        [row.scan, f"{row.crop:g}", f"{row.nrmse:.4f}", f"{row.cg_sense:.4f}", f"{100 * row.lost:.2f} %"]
        for row in rows
    ]
    write_tables(
        args.out,
        fields_of(CropRow, rows, digits=5),
        f"# Where the coil maps of SWI slices end, R = {R}, {checkpoint.model_id}",
        "Crop: the eigenvalue below which maps are 0.",
        table,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
