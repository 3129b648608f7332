"""What the doctor tells with torch and the model: coil maps, cost, pictures; and the page that shows all of it."""

import base64
import html
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import LostSlice, Slice
from ..dicom.write import DicomOptions
from ..errors import BadInputError
from ..files import write_text
from ..mrd.collect import slices
from ..mrd.receiving import Receiving
from ..mrd.scan import Scan
from ..options import Options
from ..output.images_file import Outputs
from ..prior.checkpoint import Checkpoint
from ..recon import plan
from ..recon.adapt import can_be_fitted, foreseen
from ..recon.agreement import agreed, evaluations_asked, kind_of
from ..recon.deadline import Deadline
from ..recon.gate import expected_residual, unfamiliar
from ..recon.prepare import with_maps
from ..recon.repairs import two_sets
from ..recon.stream import try_out
from ..recon.types import MappedSlice, Reconstruction
from ..results import Wanted
from .diagnosis import FALLBACK, Diagnosis, told
from .estimate import memory_peak


def examine(scan: Scan, options: Options, found: Diagnosis) -> None:
    """Coil maps and the conventional image of the middle slice that is whole, and what the scan will cost."""
    began = time.monotonic()
    checkpoint, device = plan.load(options, final=True)
    start = time.monotonic() - began
    data = _middle(scan, options)
    if data is None:
        return
    contrast = plan.contrast_of(options, checkpoint, scan.header)
    mapped = with_maps(data, device, contrast)
    if isinstance(mapped, LostSlice):
        found.maps = {"sets": f"none: {mapped.reason}"}
        found.reasons.append(f"slice {mapped.key.slice}: {mapped.reason}")
        return
    residual, expected = mapped.residual(mapped.conventional), expected_residual(mapped)
    found.maps = {
        "slice": mapped.key.slice,
        "sets": two_sets(mapped.data) if mapped.n_sets > 1 else "one",
        "coils": f"{mapped.n_coils} measured, {mapped.model.coil_maps.shape[-3]} used",
        "residual of CG-SENSE": residual,
        "residual expected of a sound scan": expected,
        "seconds": sum(mapped.seconds.values()),
    }
    _ask(mapped, checkpoint, contrast, found)
    found.repairs += [remark for remark in mapped.data.remarks if remark not in found.repairs]
    found.pictures = _pictures(mapped, found)
    _tell_cost(scan, mapped, options, checkpoint, start, found)


def _ask(mapped: MappedSlice, checkpoint: Checkpoint, contrast: str | None, found: Diagnosis) -> None:
    """Whether prior and data agree, as the gate will ask."""
    what, agreement = "distance from sound scans (1: few are farther)", agreed(mapped, checkpoint, contrast)
    if isinstance(agreement, str):
        found.maps[what] = f"not asked: {agreement}"
        return
    found.maps[what] = agreement.distance
    verdict = unfamiliar(Reconstruction(mapped, mapped.conventional, None, None, 1.0, agreement=agreement))
    if verdict is not None:
        found.repairs.append(verdict.text)


def _middle(scan: Scan, options: Options) -> Slice | None:
    """Of the slices that have a calibration; the last one read where none is there."""
    receiving, wanted = Receiving.of(options, scan.header), scan.n_images(options.combine_averages) // 2
    found = None
    stream = slices(scan.acquisitions(), scan.header, combine_averages=options.combine_averages, receiving=receiving)
    for number, item in enumerate(stream):
        if isinstance(item, Slice) and item.calibration is not None:
            found = item
        if found is not None and number >= wanted:
            break
    return found


def _tell_cost(
    scan: Scan, mapped: MappedSlice, options: Options, checkpoint: Checkpoint, start: float, found: Diagnosis
) -> None:
    """From a few evaluations of the network on the middle slice. start: seconds before the first one."""
    header = scan.header
    checkpoint, contrast, sampling = plan.asked(options, checkpoint, header)
    n_images = scan.n_images(options.combine_averages)
    files = Wanted(Outputs(options.outputs), DicomOptions(reformat=options.reformat))
    finish = files.seconds_to_finish(header, contrast, n_images)
    deadline = Deadline(sampling.deadline or math.inf, n_images, time.monotonic() - start, finish)
    try_out([mapped], checkpoint, contrast, sampling, deadline)
    evaluation, other = deadline.per_evaluation or math.nan, sum(mapped.seconds.values())
    one = sampling.evaluations * evaluation
    asking = deadline.asking(1, evaluations_asked(checkpoint, sampling.gate, kind_of(mapped)))
    adaptation = {}
    if sampling.adapt and can_be_fitted(mapped):
        adaptation = {"seconds of the adaptation": foreseen(mapped, checkpoint, contrast, sampling)}
    found.cost = {
        "seconds of the scan": start + sum(adaptation.values()) + n_images * (other + one + asking) + finish,
        **adaptation,
        "seconds of an image": {**mapped.seconds, "sampling": one, "gate": asking},
        "seconds of preview and files": finish,
        "MB so far": memory_peak(checkpoint.model.device),
        "sampling": f"{sampling.sampler}, {sampling.told}",
        "settings": sampling.source,
    }
    if sampling.deadline is None:
        return
    cut = deadline.plan(sampling, 1, (sampling.deadline - start - finish) / n_images - other, asking)
    if cut is None:
        found.verdict, found.exit_code = FALLBACK, max(found.exit_code, 3)
        found.reasons.insert(0, f"the deadline of {sampling.deadline:g} s leaves no time for the model")
    else:
        found.cost["within the deadline"] = cut.told


def _pictures(mapped: MappedSlice, found: Diagnosis) -> dict[str, bytes]:
    """PNG of the middle slice, of a volume's middle partition."""
    image, maps, mask = mapped.model.combined(mapped.conventional).abs(), mapped.model.coil_maps.abs(), mapped.data.mask
    if image.ndim == 3:  # whose maps are (cols, n_coils, partitions, rows)
        middle = image.shape[0] // 2
        seen = torch.fft.fftshift(maps, (2, 3)).permute(1, 2, 3, 0)[:, middle]
        image, mask = image[middle], mask[..., mask.shape[-1] // 2]
    else:
        seen = maps if maps.ndim == 3 else maps[0]
    levels: dict[str, float] = next((values for name, values in found.coils.items() if name.startswith("levels")), {})
    pictures = {
        f"CG-SENSE, slice {mapped.key.slice}": _shown([image.cpu().numpy()]),
        "sampling pattern": _shown([mask.cpu().numpy()]),
        "coil maps": _shown(list(seen.cpu().numpy())[:16]),
    }
    if levels:
        pictures["coils, dB in the centre of k-space"] = _bars(levels)
    return pictures


def _shown(images: list[np.ndarray]) -> bytes:
    from matplotlib.figure import Figure

    across = min(8, len(images))
    down = -(-len(images) // across)
    size = 4.0 if len(images) == 1 else 1.4
    figure = Figure(figsize=(size * across, size * down))
    for number, image in enumerate(images):
        axes = figure.add_subplot(down, across, number + 1)
        axes.imshow(image, cmap="gray", vmin=0, vmax=max(1e-9, float(np.percentile(image, 99.5))))
        axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    return _png(figure)


def _bars(levels: dict[str, float]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.5))
    axes = figure.add_subplot()
    axes.bar(list(levels), list(levels.values()))
    axes.set_xlabel("channel")
    axes.set_ylabel("dB")
    figure.tight_layout()
    return _png(figure)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()


STYLE = """body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; margin-bottom: 1em } td { padding: .1em 1em .1em 0; vertical-align: top }
figure { display: inline-block; margin: 0 1em 1em 0 } img { max-width: 100% } pre { line-height: 1.1 }
.supported { color: #060 } .fallback { color: #a60 } .refused { color: #a00 }"""


def page(found: Diagnosis) -> str:
    """All of it as one HTML page that needs nothing else."""
    parts = [f"<h1>Scan: <span class='{found.verdict}'>{found.verdict}</span></h1>", _list(found.reasons)]
    if found.advice:
        parts += ["<h2>Advice</h2>", _list(found.advice)]
    if found.repairs:
        parts += ["<h2>Repaired or doubtful</h2>", _list(found.repairs)]
    for title, data in found.pictures.items():
        encoded = base64.b64encode(data).decode()
        parts.append(
            f"<figure><img alt='{html.escape(title)}' src='data:image/png;base64,{encoded}'>"
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
        )
    for title, values in found.topics():
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(told(value))}</td></tr>"
            for name, value in values.items()
        )
        parts.append(f"<h2>{html.escape(title)}</h2><table>{rows}</table>")
    if found.pattern:
        parts.append(f"<h2>lines acquired</h2><pre>{html.escape(chr(10).join(found.pattern))}</pre>")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>dpmrecon doctor</title><style>{STYLE}</style>"
        f"<p>RESEARCH: not for diagnostic use</p>{''.join(parts)}</html>\n"
    )


def write(found: Diagnosis, path: Path) -> None:
    """The page. Raises BadInputError where it cannot be written."""
    try:
        write_text(path, page(found))
    except OSError as error:
        raise BadInputError(f"{path} cannot be written ({error.strerror}): choose another --page") from error


def _list(texts: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"
