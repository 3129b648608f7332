"""`dpmtrain in-sampler`: from a recipe, a denoiser and prepared slices to a denoiser that was trained in use."""

import argparse

import torch
from dpmrecon.prior.checkpoint import save_checkpoint
from dpmrecon.prior.denoiser import Denoiser

from ..files import writing
from .in_sampler import in_sampler_loss
from .keeper import read_start
from .pretrain import data_card
from .scan_runs import ScanRun

KIND = "in-sampler"


def train_in_sampler(args: argparse.Namespace) -> None:
    """The averaged weights, with the start's settings in their card: choose those anew (docs/training.md)."""
    start = read_start(args.start)
    run = ScanRun(args, KIND, start.config, calibrated=True)
    torch.manual_seed(run.settings["seed"])
    model = Denoiser(start.config)
    model.load_state_dict(start.weights)
    model = model.to(run.device)
    found, steps = run.train(KIND, model, in_sampler_loss, args.minutes, {"the start": start.model_id})
    history = {
        "start": start.model_id,
        "start_checksum_sha256": start.checksum,
        "start_history": start.history,
        "note": f"{KIND}: {steps} steps of {run.settings['batch'] * run.settings['draws']} scans",
    }
    card = {
        "recipe": run.settings,
        "history": history,
        "sampling": start.sampling,
        "data": data_card(args.data, run.settings),
    }
    with writing(args.out):
        save_checkpoint(args.out, found.cpu(), card)
