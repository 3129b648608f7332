"""What peers send for a scan: ReconData as a Gadgetron, raw acquisitions as an MRD client."""

import re
from dataclasses import fields

import ismrmrd
from dpmrecon.data import SliceKey
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan

from . import fake_peer
from .acquisitions import read_lines
from .fake_peer import acquisition, close, config, config_name

IDENTIFIER = b"Roentgen^Wilhelmina"


def recon_messages(opened, edit=lambda data: data, **options):
    heads = {}
    for line in opened.acquisitions():
        if not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            key = SliceKey(*(getattr(line.idx, field.name) for field in fields(SliceKey)))
            heads.setdefault(key, {})[line.idx.kspace_encode_step_1] = line.getHead()
    for item in slices(opened.acquisitions(), opened.header):
        data = edit(1.26 * item.kspace.numpy())  # Gadgetron's noise level is another than ours
        rows = {row: head for row, head in heads[item.key].items() if data[:, row].any()}
        for head in rows.values():
            head.number_of_samples = data.shape[2]
        yield fake_peer.recon_data(data, rows, **options)


def planted(header: bytes) -> bytes:
    """The HEADER message with an identifier in place of every name, and of the protocol's."""
    xml = re.sub(rb"<(patientName|patientID|protocolName|sequenceName)>[^<]*", rb"<\1>" + IDENTIFIER, header[6:])
    assert xml.count(IDENTIFIER) >= 3
    return fake_peer.text_message(fake_peer.HEADER, xml)


def edited_stream(scan, edit=lambda data: data, xml=lambda text: text, **kinds) -> list[bytes]:
    with open_scan(scan) as opened:
        header = fake_peer.text_message(fake_peer.HEADER, xml(opened.xml))
        return [config(), header, *recon_messages(opened, edit, **kinds), close()]


def raw_stream(scan, name: str = "dpm_flair", xml=lambda message: message) -> list[bytes]:
    """What an MRD client sends: the lines in the order of acquisition."""
    text, lines = read_lines(scan)
    header = fake_peer.text_message(fake_peer.HEADER, text)
    return [config_name(name), xml(header), *map(acquisition, lines), close()]
