"""`serve --metrics`: what the service does, for Prometheus. No patient data: reasons are our own words, without
numbers.

prometheus-client counts and serves; here is what is counted.
"""

import re
from collections.abc import Callable
from typing import Any

import ismrmrd

from ..data import LostSlice
from ..errors import BadInputError
from ..recon.types import Reconstruction

STAGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # seconds of a stage of a slice
SCANS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)  # seconds of a scan


def address_of(text: str) -> tuple[str, int]:
    """[ADDRESS:]PORT; this machine alone without an address. Raises BadInputError."""
    match = re.fullmatch(r"(?:(.+):)?(\d{1,5})", text)
    if match is None or int(match[2]) >= 2**16:
        raise BadInputError(f"--metrics is '{text}': give a port up to 65535, or ADDRESS:PORT")
    return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


def kind_of(reason: str) -> str:
    """A reason without its numbers and brackets: Prometheus keeps a series for each."""
    text = re.sub(r"\s*\([^()]*\)", "", reason)
    text = re.sub(r"\d[\d.e+-]*(?:(?:, | and | to )\d[\d.e+-]*)*", "N", text)
    return text[:120]


class Metrics:
    """Counts of a service, and their endpoint: http://ADDRESS:PORT/metrics.

    A writer, see output/writers.py, that all sessions share. model: id of the loaded model.
    Raises BadInputError where prometheus-client is missing or the port cannot be listened on.
    """

    def __init__(
        self,
        listen: str,
        model: str,
        waiting: Callable[[], int],
        in_hand: Callable[[], int],
        dicom_waiting: Callable[[], float],
    ):
        address, port = address_of(listen)
        try:
            import prometheus_client as client
        except ImportError as error:
            raise BadInputError("metrics need prometheus-client: pip install dpmrecon[metrics]") from error
        self.registry = registry = client.CollectorRegistry()
        client.ProcessCollector(registry=registry)  # memory and processor time of the process
        self.scans = client.Counter("dpmrecon_scans", "Scans that ended", ["peer", "outcome"], registry=registry)
        self.slices = client.Counter("dpmrecon_slices", "Slices and volumes", ["by"], registry=registry)
        self.fallbacks = client.Counter("dpmrecon_fallbacks", "CG-SENSE instead", ["reason"], registry=registry)
        self.cautions = client.Counter("dpmrecon_cautions", "Images to be doubted", ["reason"], registry=registry)
        self.stages = client.Histogram(
            "dpmrecon_stage_seconds", "Of a slice or volume", ["stage"], buckets=STAGES, registry=registry
        )
        self.seconds = client.Histogram("dpmrecon_scan_seconds", "Header to end", buckets=SCANS, registry=registry)
        client.Info("dpmrecon_model", "The loaded model", registry=registry).info({"id": model})
        for name, text, value in (
            ("dpmrecon_queue", "Groups of slices that wait for the device", waiting),
            ("dpmrecon_scans_in_hand", "Scans that have begun and not ended", in_hand),
            ("dpmrecon_dicom_waiting", "Scans whose DICOM is not written or sent yet", dicom_waiting),
            ("dpmrecon_device_bytes", "Memory of the GPU that tensors hold", _device_bytes),
        ):
            client.Gauge(name, text, registry=registry).set_function(value)
        try:
            self._server, self._thread = client.start_http_server(port, address, registry)
        except OSError as error:
            raise BadInputError(f"cannot listen on {address} port {port} ({error.strerror}): choose others") from error
        self.port: int = self._server.server_port

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        if isinstance(item, LostSlice):
            self.slices.labels("missing").inc()
            return
        self.slices.labels("model" if item.fallback is None else "fallback").inc()
        if item.fallback is not None:
            self.fallbacks.labels(kind_of(item.fallback)).inc()
        if item.remarks:
            self.cautions.labels(kind_of(item.verdict.partition(": ")[2])).inc()
        for stage, seconds in item.seconds.items():
            self.stages.labels(stage).observe(seconds)

    def close(self, failure: BaseException | None) -> None:
        """The scan's end is counted by `scan`, with its seconds."""

    def scan(self, record: dict[str, Any]) -> None:
        """Count a scan by its audit line."""
        outcome = "complete" if record["error"] is None else ("incomplete" if record.get("slices") else "failed")
        self.scans.labels(record.get("peer") or "unknown", outcome).inc()
        self.seconds.observe(record["seconds"]["total"])

    def stop(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _device_bytes() -> int:
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
