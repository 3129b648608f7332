"""`dpmtrain bench` and `bench-gpu`: every method side by side; seconds a slice against what a device can do."""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from dpmrecon.cli import add_command

from ..arguments import add_usual, at_least, numbers, words
from .plan import LEFT_OUT, BenchPlan


def add_bench(commands) -> None:
    plan = BenchPlan()
    parser = add_command(
        commands,
        "bench",
        "dps, prox, CG-SENSE, L1-wavelet, GRAPPA and deepinv side by side: quality, seconds by stage, memory",
        "dpmtrain bench --data DATA --R 4 --out bench",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with ismrmrd/ (scans and truth), images/ (test patient and validation) and gadgetron_grappa/; "
        "without it simulated head phantoms are the scans, and others are tuned on",
    )
    parser.add_argument("--R", default="4", help="such as 3,4,6 (default: 4)")
    parser.add_argument("--contrasts", default=",".join(plan.contrasts), help="default: flair,t1,t2")
    parser.add_argument("--slices", type=int, default=plan.slices, help="of each scan at most (default: 3)")
    parser.add_argument("--patient-slices", type=int, default=plan.patient_slices, help="of each test volume (1)")
    parser.add_argument("--dps-steps", type=int, default=plan.dps_steps, help="our DPS and deepinv's (300)")
    parser.add_argument("--matrix", type=int, default=plan.matrix, help="of the phantoms (256)")
    parser.add_argument("--without", default="", help=f"some of {', '.join(LEFT_OUT)}: leave it out although installed")
    add_usual(parser, "out", "model", "seed")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    from dpmrecon.prior.checkpoint import load_checkpoint

    from .bench import bench, phantoms, shared_data

    at_least(args, slices=1, patient_slices=0, dps_steps=1)
    checkpoint = load_checkpoint(args.model)
    plan = BenchPlan(
        accelerations=numbers("--R", args.R, 2),
        contrasts=words("--contrasts", args.contrasts, checkpoint.denoiser.labels),
        grappa=None if args.data is None else args.data / "gadgetron_grappa",
        without=words("--without", args.without, LEFT_OUT),
        **{name: getattr(args, name) for name in ("slices", "patient_slices", "dps_steps", "seed", "matrix")},
    )
    with ExitStack() as stack:
        if args.data is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            slices, validation = phantoms(folder, plan)
        else:
            slices, validation = shared_data(args.data, plan)
        bench(slices, validation, checkpoint, plan, args.out)
    return 0


def add_bench_gpu(commands) -> None:
    parser = add_command(
        commands,
        "bench-gpu",
        "Seconds a slice by stage against dps in the same run, and the roofline: for a GPU, or small on a CPU",
        "dpmtrain bench-gpu --recipe training/recipes/paper.toml --out bench_gpu",
    )
    parser.add_argument("--recipe", type=Path, help="also its network, with random weights")
    parser.add_argument("--matrix", type=int, default=320)
    parser.add_argument("--coils", type=int, default=16)
    parser.add_argument("--slices", type=int, default=8, help="sampled in one batch by prox (default: 8)")
    parser.add_argument("--steps", default="10,20,50", help="evaluations of prox (default: 10,20,50)")
    parser.add_argument("--dps-steps", type=int, default=300)
    add_usual(parser, "out", "model", "device")
    parser.set_defaults(run=_bench_gpu)


def _bench_gpu(args: argparse.Namespace) -> int:
    from dpmrecon.device import device_of
    from dpmrecon.prior.checkpoint import load_checkpoint

    from .gpu import mapped_slices, random_network, timings, write_table

    at_least(args, matrix=32, coils=1, slices=1, dps_steps=1)
    steps = numbers("--steps", args.steps, 1)
    device = device_of(args.device)
    networks = [load_checkpoint(args.model, device)]
    if args.recipe is not None:
        networks.append(random_network(args.recipe, networks[0], device))
    cases, before = mapped_slices(args.matrix, args.coils, args.slices, device)
    rows = [row for network in networks for row in timings(network, cases, before, steps, args.dps_steps)]
    write_table(args.out, f"{args.matrix}x{args.matrix}, {args.coils} coils, R = 4, wall time of one slice", rows)
    return 0
