"""One scan of one peer: messages come in, images go out as soon as their slice is done. Read `Session.scan` first.

The steps between are the generators that `replay` uses. Whatever happens, the peer hears an end, and a reason where
its scan did not come out whole. Logs hold no text from the scan's header.
"""

import hashlib
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ismrmrd

from ..data import LostSlice, Slice
from ..errors import UNEXPECTED, BadInputError, DpmreconError
from ..mrd.completeness import announced_ends, announced_slices
from ..mrd.header import n_partitions, overridden, read_header
from ..mrd.lines import LineHeaders
from ..mrd.receiving import CONJUGATION
from ..mrd.scan_log import ScanLog
from ..output.maps import Maps, in_whole_numbers
from ..output.mrd_images import mrd_images
from ..output.names import Names
from ..output.swi import SwiSeries
from ..output.weighting import weighting_from_text
from ..output.whole_numbers import SpreadScale
from ..output.writers import Writer, writing
from ..read_ahead import ReadAhead
from ..recon.adapt import Adaptation
from ..recon.deadline import Deadline
from ..recon.plan import asked
from ..recon.provenance import Provenance
from ..recon.stream import slices_at_once
from ..recon.types import Reconstruction, Sampling
from . import wire
from .adapters import Gadgetron, Host, without_texts
from .audit import AuditLog, header_digest, origin
from .dicom_queue import DicomJob, DicomQueue
from .engine import Engine, SampleRequest
from .metrics import Metrics
from .wire import PeerGoneError, Wire

log = logging.getLogger("dpmrecon")


def on_device(
    groups: Iterable[list[Slice | LostSlice]],
    engine: Engine,
    contrast: str | None,
    sampling: Sampling,
    n_slices: int,
) -> Iterator[Reconstruction | LostSlice]:
    """The device's part of the work, group by group: the turn goes to other peers between.

    n_slices: that are announced; a deadline, counted from the first slice on, is shared among them.
    """
    checkpoint, deadline = engine.checkpoint, None
    adaptation = Adaptation(checkpoint, contrast, sampling) if sampling.adapt else None
    for group in groups:
        if deadline is None and sampling.deadline is not None:
            deadline = Deadline(sampling.deadline, n_slices, time.monotonic())
        yield from engine.run(SampleRequest(group, checkpoint, engine.device, contrast, sampling, deadline, adaptation))


class Sender:
    """A writer to the peer: images leave as soon as their slice is done."""

    def __init__(self, host: Host, peer: Wire):
        self.host, self.peer, self.scaled = host, peer, SpreadScale()

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        for image in images:
            self.host.send(self.peer, self.scaled(image))

    def close(self, failure: BaseException | None) -> None:
        """The end is told by the session, with its reason."""


class Books:
    """A writer of the audit line and of the log: what became of every slice."""

    def __init__(self, record: dict[str, Any], asked: Sampling, lines: ScanLog, names: Names):
        self.record, self.asked, self.lines, self.names = record, asked, lines, names
        self.lost: list[str] = []

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        record, image = self.record, self.names.image(item.key)
        if isinstance(item, LostSlice):
            self.lost.append(f"{image}: {item.reason}")
            record["missing"] += 1
            record["decisions"].append(f"missing: {self.lost[-1]}")
            log.error("%s", self.lost[-1])
            return
        record["slices"] += 1
        record["images"] += len(images)
        for name, seconds in item.seconds.items():
            record["seconds"][name] = round(record["seconds"].get(name, 0.0) + seconds, 3)
        record["residuals"].append(round(item.residual, 3) if math.isfinite(item.residual) else None)
        verdict = item.verdict.partition(":")[0]
        record["verdicts"][verdict] = record["verdicts"].get(verdict, 0) + 1
        if item.unasked is not None:
            unasked = record.setdefault("prior_and_data_not_asked", {})
            unasked[item.unasked] = unasked.get(item.unasked, 0) + 1
        if "adaptation" in item.seconds:
            record["decisions"].append(str(item.adaptation))
        for remark in item.remarks:
            record["decisions"].append(f"remark: {image}: {remark}")
            log.warning("%s: %s", image, remark)
        if item.fallback is None:
            if item.drawn != self.asked.told:
                record["decisions"].append(f"deadline: {image}: {item.drawn}")
            log.info("%s: DPM, residual %.2f", image, item.residual)
        else:
            record["fallbacks"] += 1
            record["decisions"].append(f"fallback: {image}: {item.fallback}")
            log.warning("%s: CG-SENSE FALLBACK: %s", image, item.fallback)

    def close(self, failure: BaseException | None) -> None:
        """Raises BadInputError where slices are missing and nothing else broke the scan off."""
        self.record["lines"] = dict(self.lines.kinds)
        for remark in self.lines.remarks:
            self.record["decisions"].append(f"remark: {remark}")
            log.warning("%s", remark)
        if self.lost and failure is None:
            count = len(self.lost) + self.record["slices"]
            raise BadInputError(f"{len(self.lost)} of {count} slices are missing: {'; '.join(self.lost)}")


@dataclass(frozen=True)
class Hashes:
    """Two hashes of the same bytes, None for one that nobody asks for: of the audit's key, and a plain one for the UIDs
    of DICOM."""

    keyed: Any
    plain: Any

    def update(self, data: bytes) -> None:
        for one in (self.keyed, self.plain):
            if one is not None:
                one.update(data)


@dataclass
class Session:
    """One scan. `run` never raises: what went wrong is in the log and in what the peer got.

    engine: gives the loaded model; asked for once the scan has begun: a failure is the scan's error.
    """

    peer: Wire
    engine: Callable[[], Engine]
    host: Host = field(default_factory=Gadgetron)
    audit: AuditLog | None = None
    metrics: Metrics | None = None
    dicom: DicomQueue | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the audit line
    reader: ReadAhead | None = None
    begun: bool = False  # a scan is in hand
    done: bool = False  # nothing is left but the CLOSE
    exit_code: int = 0  # of a command whose one scan this is, where the scan breaks off
    remarks: list[str] = field(default_factory=list)  # for the peer, at the end
    _job: DicomJob | None = None

    def scan(self, config: bytes, header_xml: bytes) -> None:
        """From messages to images. Raises DpmreconError in one sentence when something was not reconstructed."""
        record = self.record
        record.update(peer=self.host.name, slices=0, fallbacks=0, missing=0, images=0, contrast=None, seconds={})
        engine = self.engine()
        record.update(origin(engine.checkpoint, engine.device))
        self.peer.patience = wire.SCAN
        options = self.host.options(config, engine, self.host.added(self.peer))
        xml = overridden(header_xml, options.set)
        header = read_header(xml)
        record["header"] = header_digest(header)
        checkpoint, contrast, sampling = asked(options, engine.checkpoint, header)
        engine = replace(engine, checkpoint=checkpoint)
        record.update(origin(checkpoint, engine.device))
        record.update(contrast=contrast, parameters=asdict(sampling), residuals=[], decisions=[], verdicts={})
        if contrast is None:
            self._note("the protocol names no known contrast: the unlabelled prior is used")
        receiving = self.host.receiving(options, header)
        if receiving.conjugate:
            self._note(CONJUGATION)
        provenance = Provenance.of(
            checkpoint,
            contrast,
            sampling,
            combine_averages=options.combine_averages,
            conjugated=receiving.conjugate,
            taken=receiving.taken,
        )
        n_slices = announced_slices(header, combine_averages=options.combine_averages)
        line_headers: LineHeaders = {}
        lines = ScanLog()
        combine, messages = options.combine_averages, without_texts(self.peer.messages(), self._late)
        stream: Iterator[Any] = self.host.slices(
            messages, header, line_headers, receiving, lines, combine_averages=combine
        )
        # a volume takes as much memory as hundreds of slices
        waiting = 1 if n_partitions(header) > 1 else slices_at_once(sampling.batch, sampling.samples)
        self.reader = ReadAhead(stream, waiting)
        stated = None if options.b_values is None else weighting_from_text(options.b_values)
        ends = announced_ends(header, combine_averages=combine)
        maps = Maps(
            header,
            stated,
            self._send_map,
            self._note,
            combine_averages=combine,
            last=lambda counter: getattr(ends[1], counter),
        )
        for remark in maps.weighting.remarks if maps.weighting else ():
            lines.remark(remark)
        swi = SwiSeries(header, provenance, options.vein_phase, self._send_map, self._note)
        writers: list[Writer] = [Sender(self.host, self.peer), maps, swi]
        if self.dicom is not None:
            self._job = DicomJob(self.dicom, header, xml, options, provenance, maps.weighting, self._digest, self._note)
            writers.append(self._job)  # after all that sends, and before what tells of missing slices
        names = Names.of(ends, header)
        writers.append(Books(record, sampling, lines, names))
        if self.metrics is not None:
            writers.append(self.metrics)
        with writing(writers) as add:
            stream = on_device(self.reader.groups(), engine, contrast, sampling, n_slices)
            stream = mrd_images(stream, header, line_headers, provenance, options.outputs, maps.weighting)
            for item, images in stream:
                add(item, images)

    def _note(self, text: str) -> None:
        self.record["decisions"].append(text)
        log.warning("%s", text)

    def _late(self, text: str) -> None:
        """Noted once, and told at the end: lines are read in a thread of their own, and images go out meanwhile."""
        if text not in self.remarks:
            self.remarks.append(text)
            self._note(text)

    def _send_map(self, image: ismrmrd.Image) -> None:
        self.host.send(self.peer, in_whole_numbers(image))
        self.record["images"] += 1
        if self._job is not None:
            self._job.put(image)

    def run(self, greeting: Callable[[Wire], tuple[Host, bytes, bytes] | None]) -> None:
        """Greet, scan, tell of errors, take what the peer still sends, say CLOSE, and log one line of JSON."""
        started = time.perf_counter()
        self.record["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        message = None
        try:
            greeted = greeting(self.peer)
            if greeted is None:
                return
            started = time.perf_counter()  # the wait for the peer's first message is not ours
            self.begun = True
            self.host, config, header = greeted
            self._hash_from(header)
            self.scan(config, header)
        except DpmreconError as error:
            self.host = getattr(error, "host", self.host)
            message, self.exit_code = str(error), error.exit_code
        except Exception as error:
            self.exit_code = UNEXPECTED
            # its text may hold values from the header: say what and where, not that
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"internal error: {type(error).__name__} in {place.name} ({place.filename}:{place.lineno})"
        try:
            self._farewell(message)
        finally:
            self.record["seconds"] = {
                **self.record.get("seconds", {}),
                "total": round(time.perf_counter() - started, 3),
            }
            keyed = self.peer.hash and self.peer.hash.keyed
            self.record.update(error=message, input=keyed and keyed.hexdigest())
            log.info("scan %s", json.dumps(self.record))
            if self.audit is not None:
                self.audit.write(self.record)
            if self.metrics is not None:
                self.metrics.scan(self.record)

    def _hash_from(self, header: bytes) -> None:
        """Hash header and data, not the configuration: a scan that is sent again, for other options, is the same."""
        self.peer.hash = Hashes(self.audit and self.audit.hash(), self.dicom and hashlib.sha256())
        self.peer.hash.update(header)

    def _digest(self) -> str:
        """SHA-256 of header and data, hex."""
        return self.peer.hash.plain.hexdigest()

    def _farewell(self, message: str | None) -> None:
        self.peer.patience = wire.FAREWELL
        if message is not None:
            log.error("%s", message)
        try:
            for remark in list(self.remarks):
                self.host.remark(self.peer, remark)
            if message is not None:
                self.host.fail(self.peer, message)
        except PeerGoneError as gone:
            log.error("%s", gone)
        if self.reader is not None:
            self.reader.close()
        self.peer.drain()
