"""The study and the frame of reference of several scans; the files of a protocol in checkers and in a real archive."""

import json
import subprocess

import ismrmrd
import pytest
from dpmrecon.cli import main
from dpmrecon.dicom.study import Placed, common_study
from dpmrecon.errors import BadInputError

from support.dicom import checker, unexplained
from support.orthanc import rest
from support.protocols import protocol, protocol_folder, rows

xsd = ismrmrd.xsd
TABLE = (0.0, 0.0, 12.5)


def placed(digest="0" * 64, table=TABLE, subject=None, study=None, **measurement) -> Placed:
    header = xsd.ismrmrdHeader(
        experimentalConditions=None,
        subjectInformation=xsd.subjectInformationType(**(subject or {"patientID": "1234"})),
        studyInformation=xsd.studyInformationType(**(study or {})),
        measurementInformation=xsd.measurementInformationType(
            **{"patientPosition": xsd.patientPositionType.HFS, **measurement}
        ),
    )
    return Placed(header, digest, table)


def studies(*scans, anonymize=False):
    found, remarks = common_study({str(number): scan for number, scan in enumerate(scans)}, anonymize=anonymize)
    assert len({study.uid for study in found.values()}) == 1
    return list(found.values()), remarks


DAY = {"studyDate": "2020-02-03", "studyTime": "12:00:00", "studyID": "7"}


def test_the_uid_is_that_of_the_headers_where_they_agree():
    found, remarks = studies(placed(study={"studyInstanceUID": "1.2.3"}), placed(study={"studyInstanceUID": "1.2.3"}))
    assert (found[0].uid, remarks) == ("1.2.3", [])
    found, remarks = studies(placed(study={"studyInstanceUID": "1.2.3"}), placed())
    assert (found[0].uid, len(remarks)) == ("1.2.3", 1)


def test_else_it_follows_from_patient_and_study_or_from_the_scans():
    def uid(*scans, **options):
        return studies(*scans, **options)[0][0].uid

    first, second, third = (placed(digest=letter * 64, study=DAY) for letter in "abc")
    known = uid(first, second)
    assert known.startswith("2.25.")
    assert known == uid(second, third)  # one more scan of the study tomorrow
    assert known != uid(placed(study={**DAY, "studyTime": "13:00:00"}))
    assert known != uid(placed(study=DAY, subject={"patientID": "1235"}))
    # a birth date is no patient
    born = {"patientBirthdate": "1970-01-01"}
    assert uid(placed("a" * 64, study=DAY, subject=born)) != uid(placed("b" * 64, study=DAY, subject=born))
    # nothing is told of the study: the scans are all there is
    unknown = [placed(digest=letter * 64) for letter in "abc"]
    assert uid(*unknown[:2]) == uid(*unknown[1::-1]) != uid(*unknown[1:])
    assert uid(first, second, anonymize=True) not in (known, uid(first, second))
    times = [placed(study={**DAY, "studyTime": text}) for text in ("10:00:00", "10:20:00")]
    assert "do not all name the same study" in studies(*times)[1][0]


def test_two_exams_are_not_one_study():
    for field, values in (("studyInstanceUID", ("1.2.3", "1.2.4")), ("studyDate", ("2020-01-01", "2024-06-01"))):
        with pytest.raises(BadInputError, match="several exams"):
            studies(*(placed(study={**DAY, field: value}) for value in values))


@pytest.mark.parametrize("anonymize", [False, True])
def test_a_frame_is_shared_where_nothing_moved(anonymize):
    def frames(*scans):
        return [study.frame for study in studies(*scans, anonymize=anonymize)[0]]

    base = placed(study=DAY)
    same = placed(digest="1" * 64, study=DAY, table=(0.04, 0.0, 12.46))  # rounding of a header
    assert len(set(frames(base, same))) == 1
    moved = placed(study=DAY, table=(0.0, 0.0, 40.0))
    turned = placed(study=DAY, patientPosition=xsd.patientPositionType.FFS)
    other = placed(study={**DAY, "studyTime": "23:04:00"})
    assert len(set(frames(base, moved, turned, other))) == 4
    stated = [placed(study=DAY, frameOfReferenceUID=text) for text in ("1.2.5", "1.2.5", "1.2.6")]
    found = frames(*stated, base)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert (found[0] == "1.2.5") != anonymize


def test_anonymous_studies_tell_nothing():
    found, _ = studies(placed(study=DAY), placed(study=DAY), anonymize=True)
    assert {(study.subject, study.info) for study in found} == {(None, None)}


def test_what_one_header_lacks_another_tells_and_placeholders_give_way():
    scans = [
        placed(subject={"patientID": "xxxxxxxx", "patientName": "DOE"}, study={"studyDate": "2020-02-03"}),
        placed(subject={"patientID": "1234"}, study={"studyDate": "2020-02-03", "accessionNumber": "9"}),
    ]
    for study in studies(*scans)[0]:
        assert (study.subject.patientID, study.subject.patientName) == ("1234", "DOE")
        assert (study.info.studyDate, study.info.accessionNumber) == ("2020-02-03", "9")


def test_series_numbers_are_the_headers_where_they_tell_scans_apart():
    def numbers(*given):
        return [study.number for study in studies(*(placed(initialSeriesNumber=number) for number in given))[0]]

    assert numbers(4, 2, 9) == [4, 2, 9]
    assert numbers(4, 4, 9) == numbers(None, 4, 9) == [1, 2, 3]


def test_the_place_of_the_table_is_read(simulated_scan, tmp_path):
    from dpmrecon.mrd.file import open_scan

    from support.edited import edited

    def move(number, line):
        line.patient_table_position[:] = (1.0, 2.0, 3.04)
        return line

    with open_scan(edited(simulated_scan(), tmp_path, move)) as scan:
        found = Placed.of(scan)
    assert found.table_mm == pytest.approx((1, 2, 3.04, 0, 0, 0))
    assert found.digest == scan.digest


@pytest.fixture(scope="module")
def result(simulated_scan, model, tmp_path_factory):
    """A protocol and, of one scan, its reference."""
    patient = protocol_folder(tmp_path_factory.mktemp("patient"), simulated_scan)
    reference = protocol_folder(tmp_path_factory.mktemp("reference"), simulated_scan, ("flair",), acceleration=1)
    out = tmp_path_factory.mktemp("result")
    assert protocol(patient, out, model, "--reference", str(reference), "--reformat", "axial") == 0
    return out


def test_the_checkers_find_a_consistent_study(result):
    files = sorted(result.rglob("*.dcm"))
    done = subprocess.run([checker("dcentvfy"), *map(str, files)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path in [next(iter(sorted(folder.glob("*.dcm")))) for folder in sorted({path.parent for path in files})]:
        assert [line for line in unexplained(path) if "DICOMDIR" not in line] == []


def test_an_archive_finds_one_study_of_one_patient(result, orthanc, capsys):
    peer, address = orthanc
    assert main(["send", str(result), "--to", str(peer)]) == 0
    files = len(list(result.rglob("*.dcm")))
    assert f"{files} of {files} images stored" in capsys.readouterr().out
    (patient,), (study,), series = (json.loads(rest(address, f"/{name}")) for name in ("patients", "studies", "series"))
    tags = json.loads(rest(address, f"/studies/{study}"))
    assert (
        tags["MainDicomTags"]["StudyInstanceUID"]
        == json.loads((result / "protocol.json").read_text())["StudyInstanceUID"]
    )
    assert tags["PatientMainDicomTags"]["PatientID"] == "SIMULATED0"
    told = [json.loads(rest(address, f"/series/{name}")) for name in series]
    assert sum(len(one["Instances"]) for one in told) == files
    assert {one["MainDicomTags"]["ProtocolName"] for one in told} == {row["protocol"] for row in rows(result).values()}
    # opened there: each kind of image is drawn by the archive
    for one in told:
        assert rest(address, f"/instances/{one['Instances'][0]}/preview")[:4] == b"\x89PNG"
