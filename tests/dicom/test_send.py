"""`dpmrecon send` against a real archive (Orthanc on loopback) and against peers that refuse."""

import gc
import json
import shutil
import socket
from pathlib import Path

import pydicom
import pytest
from dpmrecon.cli import main
from dpmrecon.dicom.send import Archive, SendError, _association, archive_from_text, dicom_files, send
from dpmrecon.errors import BadInputError
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from support.orthanc import free_port, rest
from support.results import replay


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    """A folder with the DICOM files of a replay: two series of two images."""
    out = tmp_path_factory.mktemp("result")
    assert replay(simulated_scan(matrix=(48, 63), n_slices=2), out, model) == 0
    return out / "dicom"


def test_orthanc_gives_back_every_tag(result, orthanc, tmp_path, capsys):
    peer, address = orthanc
    assert main(["send", str(result), "--to", str(peer)]) == 0
    assert f"4 of 4 images stored at {peer}, 0 refused" in capsys.readouterr().out
    instances = json.loads(rest(address, "/instances"))
    assert len(instances) == 4
    kept = {}
    for instance in instances:
        (tmp_path / "back.dcm").write_bytes(rest(address, f"/instances/{instance}/file"))
        file = pydicom.dcmread(tmp_path / "back.dcm")
        kept[file.SOPInstanceUID] = file
    for path in dicom_files(result):
        sent = pydicom.dcmread(path)
        back = kept[sent.SOPInstanceUID]
        assert [element.tag for element in back] == [element.tag for element in sent]
        for element in sent:
            assert back[element.tag] == element
        assert back.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    # the archive files them as one patient, one study and two series
    assert [len(json.loads(rest(address, f"/{level}"))) for level in ("patients", "studies", "series")] == [1, 1, 2]
    tags = json.loads(rest(address, f"/series/{json.loads(rest(address, '/series'))[0]}"))["MainDicomTags"]
    assert tags["Modality"] == "MR"
    assert "RESEARCH" in tags["SeriesDescription"]
    # the same once more: reproducible UIDs make no second copy
    assert main(["send", str(result), "--to", str(peer)]) == 0
    assert len(json.loads(rest(address, "/instances"))) == 4


def test_orthanc_refuses_a_wrong_title(result, orthanc, capsys):
    peer, _ = orthanc
    assert main(["send", str(result), "--to", f"OTHER@127.0.0.1:{peer.port}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "refuses the association" in error
    assert "application entity title" in error
    pauses = []
    with pytest.raises(SendError):
        send(dicom_files(result), Archive("OTHER", peer.host, peer.port), sleep=pauses.append)
    assert pauses == []  # another try would end the same way


def test_no_packet_waits_for_the_answer_to_another(orthanc):
    with _association(orthanc[0], "DPMRECON") as association:
        assert association.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture
def scripted():
    """scripted(statuses, context) -> (Archive, received): a peer that answers C-STORE with these statuses in turn."""
    servers = []

    def start(statuses, context=MRImageStorage):
        answers, received = iter(statuses), []

        def store(event):
            status = next(answers)
            if status is None:
                event.assoc.abort()
                return 0xC000
            if status == 0:
                received.append(event.request.AffectedSOPInstanceUID)
            return status

        entity = AE(ae_title="PEER")
        entity.add_supported_context(context)
        servers.append(entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]))
        return Archive("PEER", "127.0.0.1", servers[-1].socket.getsockname()[1]), received

    yield start
    for server in servers:
        server.shutdown()


def test_what_is_refused_is_named_with_the_reason(result, scripted, capsys):
    peer, received = scripted([0, 0xA900, 0xC123, 0xB000])
    assert main(["send", str(result), "--to", str(peer)]) == 1
    printed = capsys.readouterr()
    names = [str(path.relative_to(result)) for path in dicom_files(result)]
    assert f"refused: {names[1]}: data set does not match its SOP class (status 0xA900" in printed.err
    assert f"refused: {names[2]}: cannot understand the data set (status 0xC123" in printed.err
    assert f"stored with a warning: {names[3]}: status 0xB000" in printed.err
    assert "2 of 4 images stored" in printed.out
    assert len(received) == 1


def test_out_of_resources_and_a_broken_connection_are_tried_again(result, scripted):
    files, pauses = dicom_files(result), []
    peer, received = scripted([0, 0xA700, None, 0, 0, 0, 0])
    report = send(files, peer, pause=3.0, sleep=pauses.append)
    assert (report.stored, report.refused) == (4, {})
    assert sorted(received) == sorted(pydicom.dcmread(path).SOPInstanceUID for path in files)
    assert pauses == [3.0]
    peer, received = scripted([0, 0, 0, *[0xA700] * 9])
    report = send(files, peer, retries=2, sleep=pauses.append)
    assert report.stored == 3
    assert list(report.refused) == [files[3]]
    assert "out of resources (status 0xA700), 3 times" in report.refused[files[3]]
    assert len(pauses) == 1 + 2


# pynetdicom leaves the socket of a refused connection to the garbage collector
@pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")
def test_a_peer_without_mr_storage_and_a_peer_that_is_not_there(result, scripted, capsys):
    peer, _ = scripted([], Verification)
    assert main(["send", str(result), "--to", str(peer)]) == 2
    assert "takes no MR images" in capsys.readouterr().err
    gone = f"PEER@127.0.0.1:{free_port()}"
    assert main(["send", str(result), "--to", gone, "--retries", "0"]) == 2
    assert "check host and port" in capsys.readouterr().err
    gc.collect()


def test_a_file_that_is_not_dicom_does_not_stop_the_others(result, scripted, tmp_path):
    shutil.copytree(result, tmp_path / "dicom")
    (tmp_path / "dicom" / "notes.dcm").write_text("no DICOM")
    peer, received = scripted([0] * 4)
    report = send(dicom_files(tmp_path / "dicom"), peer)
    assert report.stored == len(received) == 4
    assert [path.name for path in report.refused] == ["notes.dcm"]


@pytest.mark.parametrize(
    "text",
    [
        *("ORTHANC", "@localhost:104", "A@host", "A@host:0", "A@host:99999", "A" * 17 + "@h:1"),
        *("RÖNTGEN@h:1", "A\tB@h:1", "A\\B@h:1"),
    ],
)
def test_bad_addresses(text):
    with pytest.raises(BadInputError, match="AET@host:port"):
        archive_from_text(text)


def test_good_addresses_and_empty_folders(tmp_path):
    assert archive_from_text("MY AET@pacs.example.org:11112") == Archive("MY AET", "pacs.example.org", 11112)
    assert archive_from_text("A@[::1]:104").host == "::1"
    for folder in (tmp_path, Path("/nowhere")):
        with pytest.raises(BadInputError, match="no .dcm files"):
            dicom_files(folder)
