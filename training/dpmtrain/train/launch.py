"""Several processes from one command: one for each GPU, or some on a CPU.

Where a launcher for several machines has started the processes already, nothing is started:
`torchrun --nnodes 2 --nproc-per-node 8 ... -m -- dpmtrain.cli pretrain RECIPE ...`.
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from dpmrecon.errors import BadInputError, DpmreconError

from ..arguments import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that trains."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--processes", type=int, help="that share every batch (default: one for each GPU)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes for each of them (default: 0)")
    parser.add_argument("--threads", type=int, help="of the CPU, for each process (default: all)")


def launch(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """command(args) in `args.processes` processes; returns the exit code. Raises BadInputError for bad counts."""
    import torch

    gpus = torch.cuda.device_count() if args.device != "cpu" else 0
    if args.device == "cuda" and not gpus:
        raise BadInputError("--device is cuda, and this machine has no GPU that torch can use: leave it out")
    processes = args.processes or max(gpus, 1)
    at_least(args, processes=1, workers=0, threads=1)
    if gpus and processes > gpus:
        raise BadInputError(f"--processes is {processes}, and this machine has {gpus} GPUs: give at most as many")
    if processes == 1 or "WORLD_SIZE" in os.environ:
        return command(args)
    if not gpus and "OMP_NUM_THREADS" not in os.environ:
        args.threads = args.threads or max(1, (os.cpu_count() or 1) // processes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.start_processes(
        _process, (command, args, processes, port, not gpus), processes, join=False, start_method="spawn"
    )
    assert context is not None

    def forward(number: int, _) -> None:
        for pid in context.pids():
            os.kill(pid, signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join():
            pass
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code <= 0:
            raise DpmreconError(
                f"training process {error.error_index} was killed ({error}): the same command goes on from the last "
                "state, with a smaller batch if memory ran out"
            ) from error
        return error.exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _process(rank: int, command, args: argparse.Namespace, processes: int, port: int, on_cpu: bool) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU=str(on_cpu).lower(),
    )  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads or 1))
    try:
        code = command(args)
    except DpmreconError as error:
        time.sleep(min(rank, 1))  # what stops all is said once: the first end ends the others
        print(f"dpmtrain: {error}", file=sys.stderr, flush=True)
        code = 2
    sys.exit(code)
