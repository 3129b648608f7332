"""Error against evaluations, with and without distillation:

    python -m dpmtrain.one_step.distillation --images DATA --teacher FILE --students FILE ... --out DIR

Validation slices, regular masks with 24 calibration lines, R = 4. The teacher draws with 128, 32, 8, 4, 2 and 1
evaluations, each student with those of its card. All have the card's data consistency and one sample; beside them the
shipped network, which was trained by regression. Writes a table in markdown and CSV and a plot. A run that was stopped
goes on.
"""

from pathlib import Path

import numpy as np
import torch
from dpmrecon.api import load_model
from dpmrecon.errors import BadInputError
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.kinds import ONE_STEP
from dpmrecon.recon.plan import sampling_of
from matplotlib.figure import Figure

from ..arguments import exit_code, module_parser
from ..evaluate.engine import Group, Method, compare
from ..evaluate.methods import label_for, model_method
from ..evaluate.plan import Condition
from ..evaluate.references import CPU
from ..evaluate.score_lines import ScoreLines
from ..evaluate.scoring import Row, Undersampled
from ..evaluate.tables import write_tables
from ..evaluate.validation import validation_scan
from ..files import save_figure

CONTRASTS, R = ("flair", "t1"), 4
EVALUATIONS = (128, 32, 8, 4, 2, 1)
TEACHER, STUDENTS, SHIPPED = "teacher, undistilled", "distilled students", "shipped, by regression"
Asked = list[tuple[str, Checkpoint, int]]  # line of the plot, model, evaluations


def asked_of(teacher: Path, students: list[Path]) -> Asked:
    """Raises CheckpointError for files that are none, BadInputError for models of another kind."""
    first, *others = (load_model(path, "cpu") for path in (teacher, *students))
    for path, model in zip((teacher, *students), (first, *others)):
        if model.card.get("kind") != ONE_STEP:
            raise BadInputError(
                f"{path} is of the kind {model.card.get('kind')}: a model of the kind one-step is needed"
            )
    shipped = load_model(ONE_STEP, "cpu")
    found = [(TEACHER, first, count) for count in EVALUATIONS]
    found += [(STUDENTS, model, model.card["sampling"][ONE_STEP]["steps"]) for model in others]
    return found + [(SHIPPED, shipped, count) for count in (4, 2, 1)]


def method(name: str, model: Checkpoint, evaluations: int, contrast: str) -> Method:
    chosen = sampling_of(Options(steps=evaluations, samples=1), model, CPU, label_for(model, contrast), R)
    return model_method(f"{name}, {evaluations}", model, chosen)


def rows_of(images: Path, asked: Asked, lines: ScoreLines) -> list[Row]:
    condition = Condition("regular", R)

    def group(contrast: str) -> Group:
        cases = (Undersampled(full, condition, CPU) for full in validation_scan(images, contrast))
        return cases, [method(*one, contrast) for one in asked]

    return compare(map(group, CONTRASTS), lines)


def plot(rows: list[Row], asked: Asked) -> Figure:
    """NRMSE against evaluations, a panel for each contrast, a line for each training."""
    made = Figure((9, 3.8), layout="constrained")
    axes = made.subplots(1, len(CONTRASTS))
    for axis, contrast in zip(axes, CONTRASTS):
        values = [float(np.mean(row.nrmse)) for row in rows if row.contrast == contrast]
        for name in dict.fromkeys(name for name, _, _ in asked):
            points = sorted((count, value) for (of, _, count), value in zip(asked, values) if of == name)
            axis.plot(*zip(*points), "o-", label=name)
        axis.set(xscale="log", xlabel="evaluations", ylabel="NRMSE", title=f"{contrast}, R = {R}")
        axis.set_xticks(EVALUATIONS, [str(count) for count in EVALUATIONS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return made


def report(rows: list[Row], asked: Asked, out: Path) -> None:
    lines = [["", "evaluations", *(f"{contrast} R = {R}" for contrast in CONTRASTS)]]
    for number, (name, _, count) in enumerate(asked):
        of = [rows[number + part * len(asked)] for part in range(len(CONTRASTS))]
        lines.append([name, str(count), *(f"{np.mean(row.nrmse):.4f}" for row in of)])
    save_figure(out / "distillation.png", plot(rows, asked), 80)
    write_tables(out, lines, "# With and without distillation, one sample", lines)


def main() -> None:
    parser = module_parser(__doc__, "images", "out")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--students", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = asked_of(args.teacher, args.students)
    report(rows_of(args.images, asked, ScoreLines(args.out / "scores.jsonl")), asked, args.out)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
