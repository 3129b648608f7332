"""What is said of a header that can be used and is doubtful."""

import pytest
from dpmrecon.mrd.header import overridden, read_header
from dpmrecon.mrd.header_doubts import doubts

from support.hand_made import header_xml


def told(**values):
    """Of a sound header with other values, by their path with __ between names."""
    changes = ";".join(f"{path.replace('__', '.')}={value}" for path, value in values.items())
    return doubts(read_header(overridden(header_xml().encode(), changes)))


RECON, TIMES = "encoding__reconSpace__fieldOfView_mm__", "sequenceParameters__"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({RECON + "x": 23, RECON + "y": 23}, "field of view of 23 x 23 mm, too small for a head"),
        ({RECON + "z": 0.004}, "thickness of 0.004 mm"),
        ({TIMES + "TE": 0.09, TIMES + "TR": 9}, "TE of 0.09 ms and a TR of 9 ms"),
        ({TIMES + "TE": 0.003}, "TE of 0.003 ms"),
    ],
)
def test_units_that_are_others_are_said(values, text):
    assert any(text in one for one in told(**values))


@pytest.mark.parametrize("values", [{}, {TIMES + "TE": 2.9, TIMES + "TR": 8}, {TIMES + "TE": 0.07, TIMES + "TR": 5000}])
def test_a_sound_header_is_not_doubted(values):
    assert told(**values) == []


def test_images_that_kept_the_field_of_view_of_the_oversampling_are_said():
    space = "encoding__encodedSpace__"
    encoded = {space + "matrixSize__x": 52, space + "fieldOfView_mm__x": 260}
    assert told(**encoded) == []
    (one,) = told(**encoded, **{RECON + "x": 260})
    assert "encoding.reconSpace.fieldOfView_mm.x=130" in one
