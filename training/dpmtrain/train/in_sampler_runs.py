"""`dpmtrain in-sampler`: from a recipe, a denoiser and prepared slices to a denoiser that was trained in use."""

import argparse
from dataclasses import replace

import torch
from dpmrecon.prior.checkpoint import save_checkpoint
from dpmrecon.prior.denoiser import Denoiser

from ..files import writing
from .in_sampler import InSamplerLoss
from .keeper import read_start
from .pretrain import data_card
from .scan_runs import CalibratedBatches, ScanRun, blend, check_kept, kept_text
from .volume_runs import VolumeRuns
from .volume_scans import VolumeScans

KIND = "in-sampler"


def train_in_sampler(args: argparse.Namespace) -> None:
    """The averaged weights, with the start's settings in their card: choose those anew (docs/training.md)."""
    check_kept(args.keep)
    start = read_start(args.start)
    run = ScanRun(args, KIND, start.config, CalibratedBatches)
    settings = run.settings
    loss = InSamplerLoss(settings["slice_weight"])
    torch.manual_seed(settings["seed"])
    if settings["volume_scans"] > 0:
        scans = VolumeScans(run.folder / "volumes", settings["volume_scans"], settings["volume_shapes"])
        scans.make(run.batches.slices, settings["seed"], max(1, args.workers))
        loss = replace(
            loss,
            volumes=VolumeRuns(scans, settings["label_dropout"]),
            share=settings["volume_share"],
            weight=settings["volume_weight"],
        )
    model = Denoiser(start.config)
    model.load_state_dict(start.weights)
    model = model.to(run.device)
    found, steps = run.train(KIND, model, loss, args.minutes, {"the start": start.model_id})
    blend(found.cpu(), start.weights, args.keep)
    history = {
        "start": start.model_id,
        "start_checksum_sha256": start.checksum,
        "start_history": start.history,
        "note": f"{KIND}: {steps} steps of {settings['batch'] * settings['draws']} scans{kept_text(args.keep)}",
    }
    card = {
        "recipe": settings,
        "history": history,
        "sampling": start.sampling,
        "data": data_card(args.data, settings, start.data),
    }
    with writing(args.out):
        save_checkpoint(args.out, found, card)
