"""Who is at the other end, and how to talk to it: a Gadgetron's external node, or a client that sends MRD messages."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ismrmrd
import numpy as np

from ..data import LostSlice, Slice
from ..errors import BadInputError, UnsupportedScanError
from ..files import from_json
from ..mrd.averages import together
from ..mrd.collect import slices
from ..mrd.diffusion import images_counter, lines_counter, weightings_of
from ..mrd.header import Header, n_partitions
from ..mrd.lines import LineHeaders
from ..mrd.receiving import Receiving, other_contrast
from ..mrd.scan_log import ScanLog
from ..options import OPTIONS, Options, from_pairs, from_properties, printable
from ..output.whole_numbers import image_like, to_uint16, with_saturation
from . import health, wire
from .engine import Engine
from .parameters import parameters_of
from .recon_data import slices_of
from .wire import PeerGoneError, ReconBit, Wire, WireError


class Gadgetron:
    """The external node of a Gadgetron: ReconData comes, images go back (magnitudes float32), errors by ERROR frame."""

    name = "Gadgetron"

    def added(self, peer: Wire) -> list[bytes]:
        """What comes beside the header and tells options: nothing."""
        return []

    def options(self, config: bytes, engine: Engine, added: Iterable[bytes] = ()) -> Options:
        # the service's convention is that of MRD clients
        defaults = dataclasses.replace(engine.defaults, conjugate=Options().conjugate)
        return from_properties(config, defaults, service=engine.service)

    def slices(
        self,
        messages: Iterable[tuple[int, Any]],
        header: Header,
        line_headers: LineHeaders,
        receiving: Receiving,
        log: ScanLog,
        *,
        combine_averages: bool,
    ) -> Iterator[Slice | LostSlice]:
        for remark in receiving.remarks:
            log.remark(remark)
        found = slices_of(self._bits(messages), header, line_headers, combine_averages=combine_averages)
        return together(found, header, line_headers) if combine_averages else found

    def receiving(self, options: Options, header: Header) -> Receiving:
        """The server's gadgets took the lines: our images lie as its own do. Raises BadInputError for options of it."""
        for name, option in OPTIONS.items():
            field = name.replace("-", "_")
            if option.raw and getattr(options, field) != getattr(Options(), field):
                raise BadInputError(
                    f"{name} needs raw acquisitions, which the gadgets before this one have taken: leave it out of the "
                    "chain"
                )
        if options.combine_averages and n_partitions(header) > 1:
            raise BadInputError(
                "combine-averages of a 3D scan needs raw acquisitions, which the gadgets before this one have taken: "
                "leave it out of the chain"
            )
        counter = lines_counter(header)
        if weightings_of(header) and counter != images_counter(header):
            raise UnsupportedScanError(
                f"the header counts diffusion weightings by {counter}, by which the gadgets before this one keep no "
                "lines apart: send raw acquisitions, or convert the scan with contrast in its place"
            )
        return Receiving(remarks=other_contrast(options, header))

    def _bits(self, messages: Iterable[tuple[int, Any]]) -> Iterator[ReconBit]:
        for number, item in messages:
            if number != wire.RECON_DATA:
                raise BadInputError(
                    "raw acquisitions came where ReconData is needed: the chain lacks "
                    "AcquisitionAccumulateTriggerGadget and BucketToBufferGadget before this gadget"
                )
            yield from item

    def send(self, peer: Wire, image: ismrmrd.Image) -> None:
        """The tail makes magnitudes of complex64 and zeros of radians; uint16 and complex128 pass it unchanged."""
        kind = image.getHead().image_type
        if kind == ismrmrd.IMTYPE_PHASE:
            image = to_uint16(image)
        elif kind == ismrmrd.IMTYPE_COMPLEX:
            image = image_like(image, image.data[0].astype(np.complex128), dict(image.meta))
        else:  # which the tail rounds to whole numbers
            image = with_saturation(image)
        peer.send_image(image)

    def fail(self, peer: Wire, message: str) -> None:
        peer.send_error(message)

    def remark(self, peer: Wire, message: str) -> None:
        """It is in the log: a text would end the server's stream."""


class MrdClient:
    """A client that sends a config name, the header and raw acquisitions; uint16 images go back, errors are TEXT."""

    name = "MRD client"

    def added(self, peer: Wire) -> list[bytes]:
        """Texts between configuration and first line, which may be of parameters, see parameters.py."""
        return [*peer.early, *peer.texts_ahead()]

    def options(self, config: bytes, engine: Engine, added: Iterable[bytes] = ()) -> Options:
        """Those of the configuration, and over them those of the parameters, the last ones first."""
        name, pairs = config.decode("utf-8", "replace"), dict[str, str]()
        for text in added:
            other, stated = parameters_of(text)
            name, pairs = other or name, pairs | stated
        return from_pairs(pairs, self._configured(name, engine), service=engine.service)

    def _configured(self, config: str, engine: Engine) -> Options:
        text = config.strip("\0 \r\n\t")
        if text.startswith("<"):
            return from_properties(_our_configuration(text), engine.defaults, service=engine.service)
        if text.startswith("{"):
            return from_pairs(_parameters(text), engine.defaults, service=engine.service)
        labels = [label for label in engine.checkpoint.model.labels if not label.startswith("spare")]
        names = {**{label: label for label in labels}, **{f"{label}_3d": label for label in labels}, "mprage": "t1"}
        match = re.fullmatch(rf"(?:dpm_?|default)?({'|'.join(names)})?(?:_connect)?(?:\.xml)?", text)
        if match is None:
            valid = ", ".join(["dpm", *(f"dpm_{label}" for label in [*labels, "mprage"])])
            raise BadInputError(
                f"config '{printable(text)}' is unknown: valid ones are {valid}, with _3d after a label or without it"
            )
        return dataclasses.replace(engine.defaults, contrast=names[match[1]]) if match[1] else engine.defaults

    def slices(
        self,
        messages: Iterable[tuple[int, Any]],
        header: Header,
        line_headers: LineHeaders,
        receiving: Receiving,
        log: ScanLog,
        *,
        combine_averages: bool,
    ) -> Iterator[Slice | LostSlice]:
        return slices(
            self.acquisitions(messages),
            header,
            line_headers,
            combine_averages=combine_averages,
            receiving=receiving,
            log=log,
        )

    def receiving(self, options: Options, header: Header) -> Receiving:
        if options.group is not None:
            raise BadInputError("group names a measurement of a file, and a stream is one: leave it out")
        return Receiving.of(options, header)

    def acquisitions(self, messages: Iterable[tuple[int, Any]]) -> Iterator[ismrmrd.Acquisition]:
        """The lines. Raises BadInputError for ReconData."""
        for number, item in messages:
            if number != wire.ACQUISITION:
                raise BadInputError("ReconData came from an MRD client: raw acquisitions (id 1008) are needed")
            yield item

    def send(self, peer: Wire, image: ismrmrd.Image) -> None:
        peer.send_image(to_uint16(image))

    def fail(self, peer: Wire, message: str) -> None:
        peer.send_text(f"ERROR: {message}")

    def remark(self, peer: Wire, message: str) -> None:
        peer.send_text(f"REMARK: {message}")


Host = Gadgetron | MrdClient
NO_CONFIG = b"dpm"  # what says nothing but who we are
LATE = "parameters came among the scan's data and were not used: send them before its first line"


def without_texts(messages: Iterable[tuple[int, Any]], remark: Callable[[str], None]) -> Iterator[tuple[int, Any]]:
    """Lines and ReconData. remark: gets LATE for each text of parameters."""
    for number, item in messages:
        if number != wire.TEXT:
            yield number, item
        elif any(parameters_of(item)):
            remark(LATE)


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
    """Options in JSON, at the top or under "parameters", beside which a host's own entries may stand."""
    try:
        found = from_json(text)
        if "parameters" in found:
            found = {name: value for name, value in found.items() if name in OPTIONS} | found["parameters"]
        return {name: str(value) for name, value in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInputError("the configuration is no JSON object of options: send a config name") from error


def greet(
    peer: Wire, status: Callable[[], dict] = dict, host: Host | None = None, *, header_first: bool = False
) -> tuple[Host, bytes, bytes] | None:
    """Who is there, by its first messages, with its configuration and header; None for a peer that leaves at once.

    A Gadgetron's external node sends the text of a `<configuration>` of properties, everyone else a config name, a
    chain in full or JSON. Who asks how we are (see health.py) gets `status()` and leaves. host: that of everyone else;
    header_first: a header may come without a configuration.
    """
    client = host or MrdClient()
    try:
        number = peer.message_id()
    except PeerGoneError:
        return None
    if number == wire.CLOSE:
        return None
    if number == wire.CONFIG_NAME:
        host = client
        config = peer.config_name().encode()
        if config == health.NAME.encode():
            peer.send_text(json.dumps(status()))
            return None
    elif number == wire.CONFIG:
        config = peer.text()
        host = Gadgetron() if _is_properties(config) else client
    elif number == wire.HEADER and header_first:
        return client, NO_CONFIG, peer.text()
    else:
        peer.framed = False
        raise WireError(f"a message with id {number} came first: a configuration (id 1 or 2) is needed")
    number = peer.message_id()
    while number == wire.TEXT:
        peer.early.append(peer.text())
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
