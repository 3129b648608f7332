"""One scan of one peer: messages come in, images go out as soon as their slice is done. Read `Session.scan` first.

The steps between are the generators that `replay` uses. Whatever happens, the peer hears an end, and a reason where
its scan did not come out whole. Logs hold no text from the scan's header.
"""

import contextlib
import functools
import json
import logging
import math
import queue
import re
import threading
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .. import options
from ..errors import BadInputError, DpmreconError
from ..mrd.collect import LostSlice, Slice, slices
from ..mrd.header import acceleration, announced_slices, read_header
from ..options import Values
from ..output.mrd_images import mrd_images, to_uint16
from ..prior.checkpoint import Checkpoint
from ..recon.deadline import Deadline
from ..recon.sample import Reconstruction, Sampling, sampled, slices_at_once, with_coil_maps
from . import health, wire
from .audit import AuditLog, header_digest, origin
from .recon_data import slices_of
from .wire import PeerGoneError, Wire, WireError

log = logging.getLogger("dpmrecon")


@dataclass(frozen=True)
class Engine:
    """The loaded model, and what runs work on its device: `run(job)` returns job() when its turn has come."""

    checkpoint: Checkpoint
    device: torch.device
    defaults: Values
    run: Callable[[Callable[[], Any]], Any] = lambda job: job()
    service: bool = False


class Gadgetron:
    """The external node of a Gadgetron: ReconData comes, float32 images go back, errors are ERROR frames."""

    name = "Gadgetron"

    def values(self, config: bytes, engine: Engine) -> Values:
        return options.from_properties(config, engine.defaults, service=engine.service)

    def slices(self, messages: Iterable[tuple[int, Any]], header: Any, values: Values) -> Iterator[Slice | LostSlice]:
        if values["combine-averages"]:
            raise BadInputError(
                "combine-averages needs raw acquisitions: in a chain the averages are slices of their own"
            )
        return slices_of(self._bits(messages), header)

    def _bits(self, messages: Iterable[tuple[int, Any]]) -> Iterator[wire.ReconBit]:
        for number, item in messages:
            if number != wire.RECON_DATA:
                raise BadInputError(
                    "raw acquisitions came where ReconData is needed: the chain lacks "
                    "AcquisitionAccumulateTriggerGadget and BucketToBufferGadget before this gadget"
                )
            yield from item

    def send(self, peer: Wire, image: Any) -> None:
        peer.send_image(image)

    def fail(self, peer: Wire, message: str) -> None:
        peer.send_error(message)


class MrdClient:
    """A client that sends a config name, the header and raw acquisitions; uint16 images go back, errors are TEXT."""

    name = "MRD client"

    def values(self, config: bytes, engine: Engine) -> Values:
        text = config.decode("utf-8", "replace").strip("\0 \r\n\t")
        if text.startswith("<"):
            return options.from_properties(_our_configuration(text), engine.defaults, service=engine.service)
        if text.startswith("{"):
            return options.from_pairs(_parameters(text), engine.defaults, service=engine.service)
        labels = [label for label in engine.checkpoint.denoiser.labels if not label.startswith("spare")]
        match = re.fullmatch(rf"(?:dpm_?|default)?({'|'.join(labels)})?(?:_connect)?(?:\.xml)?", text)
        if match is None:
            valid = ", ".join(["dpm", *(f"dpm_{label}" for label in labels)])
            raise BadInputError(f"config '{options.printable(text)}' is unknown: valid ones are {valid}")
        return {**engine.defaults, **({"contrast": match[1]} if match[1] else {})}

    def slices(self, messages: Iterable[tuple[int, Any]], header: Any, values: Values) -> Iterator[Slice | LostSlice]:
        return slices(self._acquisitions(messages), header, combine_averages=values["combine-averages"])

    def _acquisitions(self, messages: Iterable[tuple[int, Any]]) -> Iterator[Any]:
        for number, item in messages:
            if number != wire.ACQUISITION:
                raise BadInputError("ReconData came from an MRD client: raw acquisitions (id 1008) are needed")
            yield item

    def send(self, peer: Wire, image: Any) -> None:
        peer.send_image(to_uint16(image))

    def fail(self, peer: Wire, message: str) -> None:
        peer.send_text(f"ERROR: {message}")


Host = Gadgetron | MrdClient


def _our_configuration(text: str) -> bytes:
    """What a chain in full holds for us: the `<configuration>` of its `<external>` node."""
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise BadInputError(f"the configuration is no XML ({error}): send a config name or a chain") from error
    found = [
        external.find("configuration")
        for external in root.iter("external")
        if any("dpmrecon" in (execute.get("name") or "") for execute in external.iter("execute"))
        or external.find("connect") is not None
    ]
    if len(found) != 1 or found[0] is None:
        raise BadInputError(
            f"the configuration is a chain with {len(found)} external nodes for dpmrecon: one is needed"
        )
    return ElementTree.tostring(found[0])


def _parameters(text: str) -> dict[str, str]:
    """Options in JSON, at the top or under "parameters"."""
    try:
        found = json.loads(text)
        found = found.get("parameters", found)
        return {name: str(value) for name, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise BadInputError("the configuration is no JSON object of options: send a config name") from error


def greet(peer: Wire, status: Callable[[], dict] = dict) -> tuple[Host, bytes, bytes] | None:
    """Who is there, by its first messages, with its configuration and header; None for a peer that leaves at once.

    A Gadgetron's external node sends the text of a `<configuration>` of properties, everyone else a config name, a
    chain in full or JSON. Who asks how we are (see health.py) gets `status()` and leaves.
    """
    try:
        number = peer.message_id()
    except PeerGoneError:
        return None
    if number == wire.CLOSE:
        return None
    if number == wire.CONFIG_NAME:
        host: Host = MrdClient()
        config = peer.config_name().encode()
        if config == health.NAME.encode():
            peer.send_text(json.dumps(status()))
            return None
    elif number == wire.CONFIG:
        config = peer.text()
        host = Gadgetron() if _is_properties(config) else MrdClient()
    else:
        peer.framed = False
        raise WireError(f"a message with id {number} came first: a configuration (id 1 or 2) is needed")
    number = peer.message_id()
    while number == wire.TEXT:
        peer.text()
        number = peer.message_id()
    if number != wire.HEADER:
        peer.framed = peer.closed
        raise _GreetingError(
            host, f"a message with id {number} came after the configuration: the header (id 3) is needed"
        )
    return host, config, peer.text()


class _GreetingError(WireError):
    def __init__(self, host: Host, message: str):
        super().__init__(message)
        self.host = host


def _is_properties(config: bytes) -> bool:
    try:
        root = ElementTree.fromstring(config.rstrip(b"\0 \r\n\t"))
    except (ElementTree.ParseError, LookupError, ValueError):
        return False
    return root.tag == "configuration" and root.find("stream") is None


class Reader:
    """Reads slices ahead in a thread of its own: at most `size` wait, so that a fast peer cannot fill the memory."""

    def __init__(self, stream: Iterator[Slice | LostSlice], size: int):
        self._items: queue.Queue = queue.Queue(size)
        self._size = size
        self._dropping = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Iterator[Slice | LostSlice]) -> None:
        try:
            for item in stream:
                self._put(item)
        except BaseException as error:  # the other thread raises it
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: object) -> None:
        while not self._dropping.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=0.2)
                return

    def groups(self) -> Iterator[list[Slice | LostSlice]]:
        """Lists of the slices that are there, at least one, at most `size`."""
        end: object = self
        while end is self:
            group = []
            item = self._items.get()
            while True:
                if item is None or isinstance(item, BaseException):
                    end = item
                    break
                group.append(item)
                if len(group) == self._size or self._items.empty():
                    break
                item = self._items.get()
            if group:
                yield group
        if isinstance(end, BaseException):
            raise end

    def finish(self) -> None:
        """Let the thread read on to the end of the stream, and wait for it."""
        self._dropping.set()
        self._thread.join()


def on_device(
    groups: Iterable[list[Slice | LostSlice]],
    engine: Engine,
    contrast: str | None,
    sampling: Sampling,
    n_slices: int,
) -> Iterator[Reconstruction | LostSlice]:
    """The device's part of the work, slice by slice: the turn goes to other peers between.

    n_slices: that are announced; a deadline, counted from the first slice on, is shared among them.
    """
    deadline = None
    for group in groups:
        if deadline is None and sampling.deadline is not None:
            deadline = Deadline(sampling.deadline, n_slices, time.monotonic())
        mapped = with_coil_maps(group, engine.device)
        results = sampled(mapped, engine.checkpoint, contrast, sampling, deadline=deadline)
        while (item := engine.run(functools.partial(next, results, None))) is not None:
            yield item


@dataclass
class Session:
    """One scan. `run` never raises: what went wrong is in the log and in what the peer got.

    engine: gives the loaded model; asked for when the scan has begun, so that a failure is an error of this scan.
    """

    peer: Wire
    engine: Callable[[], Engine]
    host: Host = field(default_factory=Gadgetron)
    audit: AuditLog | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the audit line
    reader: Reader | None = None
    begun: bool = False  # a scan is in hand

    def scan(self, config: bytes, header_xml: bytes) -> None:
        """From messages to images. Raises DpmreconError in one sentence when something was not reconstructed."""
        record = self.record
        record.update(peer=self.host.name, slices=0, fallbacks=0, missing=0, images=0, contrast=None, seconds={})
        engine = self.engine()
        record.update(origin(engine.checkpoint, engine.device))
        values = self.host.values(config, engine)
        header = read_header(header_xml)
        record["header"] = header_digest(header)
        contrast = options.contrast_of(values, engine.checkpoint, header)
        sampling = options.sampling_of(values, engine.checkpoint, engine.device, contrast, acceleration(header))
        record.update(contrast=contrast, parameters=asdict(sampling), residuals=[], decisions=[])
        if contrast is None:
            record["decisions"].append("the protocol names no known contrast: the unlabelled prior is used")
            log.warning("%s", record["decisions"][-1])
        self.peer.patience = wire.SCAN
        stream: Iterator[Any] = self.host.slices(self.peer.messages(), header, values)
        self.reader = Reader(stream, slices_at_once(sampling.batch, sampling.samples))
        n_slices = announced_slices(header, combine_averages=values["combine-averages"])
        stream = on_device(self.reader.groups(), engine, contrast, sampling, n_slices)
        stream = mrd_images(stream, header, engine.checkpoint, sampling)
        lost = []
        for item, images in stream:
            if isinstance(item, LostSlice):
                lost.append(f"slice {item.key.slice}: {item.reason}")
                record["missing"] += 1
                record["decisions"].append(f"missing: {lost[-1]}")
                log.error("%s", lost[-1])
                continue
            for image in images:
                self.host.send(self.peer, image)
            self._note(item, len(images))
        if lost:
            raise BadInputError(f"{len(lost)} of {len(lost) + record['slices']} slices are missing: {'; '.join(lost)}")

    def _note(self, item: Reconstruction, n_images: int) -> None:
        record, number = self.record, item.mapped.data.key.slice
        record["slices"] += 1
        record["images"] += n_images
        for name, seconds in item.seconds.items():
            record["seconds"][name] = round(record["seconds"].get(name, 0.0) + seconds, 3)
        record["residuals"].append(round(item.residual, 3) if math.isfinite(item.residual) else None)
        if item.fallback is None:
            asked = record["parameters"]
            if item.stopped or (item.samples, item.steps) != (asked["samples"], asked["settings"]["steps"]):
                record["decisions"].append(f"deadline: slice {number}: {item.drawn}")
            log.info("slice %d: DPM, residual %.2f", number, item.residual)
        else:
            record["fallbacks"] += 1
            record["decisions"].append(f"fallback: slice {number}: {item.fallback}")
            log.warning("slice %d: CG-SENSE FALLBACK: %s", number, item.fallback)

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
            message = str(error)
        except Exception as error:
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
            self.record.update(error=message, input=self.peer.hash and self.peer.hash.hexdigest())
            log.info("scan %s", json.dumps(self.record))
            if self.audit is not None:
                self.audit.write(self.record)

    def _hash_from(self, header: bytes) -> None:
        """Hash header and data, not the configuration: a scan that is sent again, for other options, is the same."""
        self.peer.hash = self.audit and self.audit.hash()
        if self.peer.hash is not None:
            self.peer.hash.update(header)

    def _farewell(self, message: str | None) -> None:
        self.peer.patience = wire.FAREWELL
        if message is not None:
            log.error("%s", message)
        try:
            if message is not None:
                self.host.fail(self.peer, message)
        except PeerGoneError as gone:
            log.error("%s", gone)
        if self.reader is not None:
            self.reader.finish()
        self.peer.drain()
