"""The experiments of Arefeen et al. (arXiv 2603.13007) in kind: FLAIR as the target, on open data, at CPU scale.

Pre-trained on other contrasts and fine-tuned on few subjects: does that equal training on more? Methods 1 to 6 of the
paper's figure 4; error against length of fine-tuning (figure 2); the best zeta of DPS against R (figure 5). Every arm
is a small recipe; `paper` trains what is missing and chooses each arm's best checkpoint on patient09 and a held-out
label map. The chosen ones are scored on patient12.
"""

from pathlib import Path

import torch
from dpmrecon.errors import BadInputError

from ..data.dataset import read_manifest
from .arms import ARMS, candidates, trained
from .report import write_report
from .scores import CHOSEN_AT, Results, best_candidate, score_test, score_validation, score_zeta


def paper(prepared: Path, images: Path, run: Path, out: Path, threads: int | None) -> None:
    """Train, choose, test; write table.csv, table.md and the figures to `out`. Resumable at every step.

    Raises BadInputError where prepared slices, or images to test on, are missing.
    """
    read_manifest(prepared)
    for subject in ("patient09", "patient12"):
        if not list(images.glob(f"open_ms/{subject}/*_FLAIR.nii.gz")):
            raise BadInputError(
                f"{images} has no open_ms/{subject}/ with a FLAIR volume: give the folder with open_ms/"
            )
    if threads:
        torch.set_num_threads(threads)
    run.mkdir(parents=True, exist_ok=True)
    paths = {candidate.name: path for candidate, path in trained(prepared, run, threads)}
    results = Results(run / "scores.jsonl")
    every = [candidate for arm in ARMS for candidate in candidates(arm)]
    score_validation(results, images, paths, every, CHOSEN_AT)
    score_validation(results, images, paths, [c for c in every if c.arm.name in ("pre", "ft_few")], 8)
    best = {arm.name: best_candidate(arm, results) for arm in ARMS}
    score_test(results, images, paths, list(best.values()))
    score_zeta(results, images, paths[best["ft_few"].name])
    out.mkdir(parents=True, exist_ok=True)
    write_report(out, results, best)
