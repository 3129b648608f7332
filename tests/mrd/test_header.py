"""The XML header: what is read, what may be missing, what is refused; and the contrast of a protocol's name."""

import re
from contextlib import nullcontext

import pytest
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.header import (
    Limits,
    acceleration,
    calibration_is_separate,
    check_supported,
    contrast_label,
    encoded_grid,
    is_epi,
    line_limits,
    overridden,
    read_header,
)

from support.hand_made import assert_point, header, header_xml, limits, only, point_scan


def test_headers_without_optional_parts_are_read():
    bare = header(trajectory="", measurement="<measurementInformation/>", conditions="")
    assert bare.measurementInformation.patientPosition is None and bare.encoding[0].trajectory is None
    assert contrast_label(bare) is None and contrast_label(header(measurement="")) is None
    assert_point(only(slices(point_scan(3, 4), bare)).kspace, 3, 4)
    flat = read_header(header_xml().replace("<z>1</z>", "").replace("<z>3</z>", ""))
    for space in (flat.encoding[0].encodedSpace, flat.encoding[0].reconSpace):
        assert (space.matrixSize.z, space.fieldOfView_mm.z) == (1, 0.0)
    assert_point(only(slices(point_scan(3, 4), flat)).kspace, 3, 4)
    unknown = read_header(header_xml().replace("<encoding>", "<vendor><a>1</a></vendor><encoding>"))
    assert encoded_grid(unknown) == (33, 26)
    xml = header_xml()
    start, end = xml.index("<parallelImaging>"), xml.index("</parallelImaging>")
    plain = read_header(xml[:start] + xml[end + len("</parallelImaging>") :])
    assert acceleration(plain) is None and not calibration_is_separate(plain)
    start, end = xml.index("<encodingLimits>"), xml.index("</encodingLimits>")
    assert line_limits(read_header(xml[:start] + xml[end + 17 :])) == Limits(0, 32, 16)


@pytest.mark.parametrize(
    "root",
    [
        "",
        ' xmlns="https://www.ismrm.org/ISMRMRD/"',
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="http://www.ismrm.org/ISMRMRD x"',
    ],
)
def test_a_header_needs_no_namespace(root):
    xml = header_xml(mode="separate")
    assert read_header(xml.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', root)) == read_header(xml)


def test_words_may_have_capitals():
    head = header(mode="Separate", trajectory="<trajectory>Cartesian</trajectory>")
    check_supported(head)
    assert calibration_is_separate(head) and not is_epi(head)
    assert is_epi(header(trajectory="<trajectory>EPI</trajectory>"))


def test_a_header_nested_too_deep_is_not_changed():
    xml = header_xml().replace("<encoding>", "<a>" * 3000 + "</a>" * 3000 + "<encoding>")
    assert encoded_grid(read_header(xml)) == (33, 26)  # what is unknown is passed over
    with pytest.raises(BadInputError, match="nests its elements too deep for changes"):
        overridden(xml.encode(), "encoding.trajectory=epi")


@pytest.mark.parametrize("factor, supported", [("1", True), ("1.0", True), ("0", True), ("2.0", False), ("two", False)])
def test_a_multiband_factor_may_be_written_otherwise(factor, supported):
    head = header(parallel=f"<multiband><multiband_factor>{factor}</multiband_factor></multiband>")
    refused = pytest.raises(UnsupportedScanError, match="multiband .factor (2|two)")
    with nullcontext() if supported else refused:
        check_supported(head)


def test_a_volume_with_the_depth_of_one_partition_is_refused():
    xml = header_xml(z=16, extra_limits=limits("kspace_encoding_step_2", 15, 8))
    check_supported(read_header(xml))
    with pytest.raises(
        BadInputError, match="16 partitions 3 mm together, 0.19 mm each where pixels have 5 mm"
    ) as caught:
        check_supported(read_header(xml.replace("<z>48</z>", "<z>3</z>")))
    changes = re.search("--set '(.*)'", str(caught.value))[1]
    check_supported(read_header(overridden(xml.replace("<z>48</z>", "<z>3</z>").encode(), changes)))


def test_whole_numbers_of_every_encoding_may_be_written_as_floats():
    space = (
        "<matrixSize><x>{0}</x><y>{0}</y><z>1</z></matrixSize><fieldOfView_mm><x>9</x><y>9</y><z>1</z></fieldOfView_mm>"
    )
    spaces = "".join(f"<{name}>{space.format('32.0')}</{name}>" for name in ("encodedSpace", "reconSpace"))
    lines = limits("kspace_encoding_step_1", "31.0", "16.0")
    second = f"<encoding>{spaces}<encodingLimits>{lines}</encodingLimits><trajectory>cartesian</trajectory></encoding>"
    assert line_limits(read_header(header_xml(encodings=second)), 1) == Limits(0, 31, 16)


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        ("", "XML header cannot be read"),
        ("not xml", "XML header cannot be read"),
        (header_xml()[:300], "XML header cannot be read"),
        ("<other/>", "XML header cannot be read|encodedSpace.matrixSize.x as None"),
        (header_xml(x=0), "encodedSpace.matrixSize.x as 0"),
        (header_xml(recon_fov_x="wide"), "reconSpace.fieldOfView_mm.x as wide"),
        (header_xml(z="one"), "encodedSpace.matrixSize.z as one"),
        (header_xml().replace("<z>3<", "<z>thin<"), "encodedSpace.fieldOfView_mm.z as thin"),
        (header_xml().replace("<z>3<", "<z>NaN<"), "encodedSpace.fieldOfView_mm.z as nan"),
        (header_xml(maximum="many"), "kspace_encoding_step_1"),
    ],
)
def test_bad_headers_are_refused(xml, text):
    with pytest.raises(BadInputError, match=text) as caught:
        read_header(xml)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("T2_FLAIR", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("T1_MPRAGE", "t1"),
        ("t1_mprage_sag_p2", "t1"),
        ("AX T1 FLAIR", "t1"),
        ("T2_TSE", "t2"),
        ("AxT2 FRFSE", "t2"),
        ("DWI_b1000", "dwi"),
        ("ep2d_diff_3scan_trace", "dwi"),
        ("SWI_Images", "swi"),
        ("t1_tirm_tra_dark-fluid", "t1"),
        ("t1_tse_dark-fluid_tra", "t1"),
        ("T1 3D diffuse glioma", "t1"),
        ("ep2d_diffusion", "dwi"),
        ("sT1W_3D_FFE", "t1"),
        ("eT1W_SE", "t1"),
        ("sT2W_TSE", "t2"),
        ("t2_fl3d_tra_swi", "swi"),
        ("t2_fl2d_tra_hemo", None),
        ("T2W_FFE", None),
        ("T2 GRE", None),
        ("T2_star", None),
        ("test1", None),
        ("localizer", None),
    ],
)
def test_contrast_label(name, label):
    def measured(element):
        names = f"<{element}>{name}</{element}>"
        return header(measurement=f"<measurementInformation>{names}</measurementInformation>")

    assert contrast_label(measured("protocolName")) == label
    assert contrast_label(measured("sequenceName")) == label
