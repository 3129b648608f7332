"""The chains: what the parser of a Gadgetron demands, that their pieces are those that recon_data asks for, and that
their properties are options."""

import importlib
import runpy
import xml.etree.ElementTree as ElementTree

import pytest
from dpmrecon import options
from dpmrecon.contrasts import LABELS
from dpmrecon.errors import BadInputError

from support.paths import ROOT

FOLDER = ROOT / "config_xml"
FILES = sorted(FOLDER.glob("*.xml"))
CONTRASTS = {**{label: label for label in LABELS if not label.startswith("spare")}, "mprage": "t1"}  # by chain


def classes(stream: ElementTree.Element) -> list[str]:
    return [node.findtext("classname", "external") for node in stream]


def test_every_contrast_has_both_forms():
    expected = {f"dpm_{name}{form}.xml" for name in CONTRASTS for form in ("", "_connect")}
    assert {path.name for path in FILES} == expected


def test_the_files_are_what_the_generator_writes():
    written = runpy.run_path(str(FOLDER / "make_chains.py"))["chains"]("127.0.0.1", 9020)
    assert {path.name: path.read_text() for path in FILES} == written


def test_the_two_forms_differ_in_the_action_alone():
    for name in CONTRASTS:
        execute, connect = (ElementTree.parse(FOLDER / f"dpm_{name}{form}.xml").getroot() for form in ("", "_connect"))
        for root, action in ((execute, "execute"), (connect, "connect")):
            external = root.find("stream/external")
            external.remove(external.find(action))
        assert ElementTree.tostring(execute) == ElementTree.tostring(connect)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_gadgetron_parses_it(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag == "configuration"
    assert root.findtext("version") == "2"
    assert [child.tag for child in root] == ["version", "readers", "writers", "stream"]
    for kind in ("reader", "writer"):
        found = root.findall(f"{kind}s/{kind}")
        assert found
        assert all(node.findtext("dll") and node.findtext("classname") for node in found)
    stream = root.find("stream")
    assert {node.tag for node in stream} == {"gadget", "external"}  # anything else has no parser
    for node in stream.findall("gadget"):
        assert {child.tag for child in node} <= {"dll", "classname", "property"}
        for found in node.findall("property"):
            assert set(found.attrib) == {"name", "value"}  # with children besides it would be ambiguous
            assert len(found) == 0
            assert "@" not in found.get("value")  # a reference
    (external,) = stream.findall("external")
    actions = [node for node in external if node.tag in ("execute", "connect")]
    assert len(actions) == 1
    assert [node.tag for node in external] == [actions[0].tag, "configuration"]
    if actions[0].tag == "execute":
        assert actions[0].get("type") == "python"
        module = importlib.import_module(actions[0].get("name"))
        assert callable(getattr(module, actions[0].get("target")))
    else:
        assert actions[0].get("address") == "127.0.0.1"
        assert 0 < int(actions[0].get("port")) < 2**16


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_properties_are_options(path):
    external = ElementTree.parse(path).getroot().find("stream/external")
    service = external.find("connect") is not None
    values = options.from_properties(ElementTree.tostring(external.find("configuration")), service=service)
    assert values.contrast == CONTRASTS[path.stem.removeprefix("dpm_").removesuffix("_connect")]
    external.find("configuration")[0].set("name", "kontrast")
    with pytest.raises(BadInputError, match="'kontrast' is unknown: valid ones are contrast, "):
        options.from_properties(ElementTree.tostring(external.find("configuration")), service=service)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_pieces_stand_in_their_order(path):
    found = classes(ElementTree.parse(path).getroot().find("stream"))
    epi = ["EPIReconXGadget", "EPICorrGadget", "FFTXGadget", "OneEncodingGadget"]
    cartesian = ["AsymmetricEchoAdjustROGadget", "RemoveROOversamplingGadget"]
    assert found == [
        "NoiseAdjustGadget",
        *(epi if "dwi" in path.stem else cartesian),
        "AcquisitionAccumulateTriggerGadget",
        "BucketToBufferGadget",
        "GenericReconCartesianReferencePrepGadget",
        "external",
        "ComplexToFloatGadget",
        "FloatToUShortGadget",
        "ImageFinishGadget",
    ]
    gadgets = {
        node.findtext("classname"): {p.get("name"): p.get("value") for p in node.findall("property")}
        for node in ElementTree.parse(path).getroot().iter("gadget")
    }
    assert gadgets["AcquisitionAccumulateTriggerGadget"] == {"trigger_dimension": "repetition"}
    assert gadgets["BucketToBufferGadget"] == {"split_slices": "true", "ignore_segment": "true"}
    assert gadgets["GenericReconCartesianReferencePrepGadget"]["ref_fill_into_data_embedded"] == "true"
    assert gadgets["FloatToUShortGadget"]["max_intensity"] == "32767"
