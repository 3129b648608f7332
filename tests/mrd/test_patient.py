"""Whether scans are of one patient, by what their headers state."""

import ismrmrd
import pytest
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.patient import check_one_patient, identity


def header(measurement=None, **subject):
    xsd = ismrmrd.xsd
    return xsd.ismrmrdHeader(
        experimentalConditions=None,
        subjectInformation=xsd.subjectInformationType(**subject) if subject else None,
        measurementInformation=xsd.measurementInformationType(
            measurementID=measurement, patientPosition=xsd.patientPositionType.HFS
        ),
    )


def check(*headers, **options):
    return check_one_patient(dict(zip("abcdef", headers)), **options)


def test_spellings_of_one_patient():
    assert check(
        header(patientID=" 17a", patientName="Doe^Jane", patientBirthdate="1970-01-02"),
        header(patientID="17A", patientName="DOE, JANE", patientBirthdate="19700102"),
        header(patientID="17A"),
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"patientID": "1234"}, {"patientID": "1235"}, "patient IDs"),
        ({"patientID": "1234", "patientName": "A"}, {"patientID": "1234", "patientName": "B"}, "patient names"),
        (
            {"patientID": "1234", "patientBirthdate": "1970-01-02"},
            {"patientID": "1234", "patientBirthdate": "1970-01-03"},
            "birth dates",
        ),
    ],
)
def test_contradictions_are_refused_and_named_without_patient_data(first, second, words):
    for allowed in (False, True):
        with pytest.raises(BadInputError, match=f"a and b have different {words}") as caught:
            check(header(**first), header(**second), same_patient=allowed)
        assert "1234" not in str(caught.value)


def test_scans_that_have_nothing_in_common():
    scans = header(patientID="1234"), header(patientName="DOE"), header(patientID="1234")
    with pytest.raises(BadInputError, match="nothing in the headers tells that b is of the same patient"):
        check(*scans)
    (remark,) = check(*scans, same_patient=True)
    assert remark.endswith("it is taken from --same-patient")
    born = {"patientBirthdate": "19800101"}
    with pytest.raises(BadInputError, match="nothing in the headers tells"):  # many were born that day
        check(header(**born), header("41000_100_200_17", **born))
    # a third scan tells that they are the same
    assert check(*scans, header(patientID="1234", patientName="DOE")) == []


def test_placeholders_tell_nothing():
    assert identity(header(patientID="xxxxxxxx", patientName="Anonymous", patientBirthdate="19700102")) == {
        "patientBirthdate": "19700102"
    }
    with pytest.raises(BadInputError, match="b is of the same patient"):
        check(header(patientID="1234"), header(patientID="xxxxxxxx"))
    (remark,) = check(header(patientID="xxxxxxxx"), header(patientID="0000"))
    assert remark.startswith("no scan names its patient")


def test_measurement_ids_of_siemens_scans_without_patient_data():
    # converters/34: one subject, four scans, serial number and patient in the measurementID
    assert check(*(header(f"41000_100_200_{number}") for number in (17, 18, 19)))[0].startswith("no scan names")
    with pytest.raises(BadInputError, match="their measurementIDs are of different ones"):
        check(header("41000_100_200_17"), header("41000_101_200_18"))
    assert check(header("41000_100_200_17"), header("41000_101_200_18"), same_patient=True)
    # the same measurement's patient joins one without data to one that has them
    assert check(header("41000_100_200_17", patientID="1234"), header("41000_100_200_18")) == []


def test_one_scan_alone_needs_nothing():
    assert check(header()) == []
    assert check() == []
