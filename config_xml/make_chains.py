"""Write the chains: `python config_xml/make_chains.py`. The XML files here are its output: change this file instead.

One chain per contrast, for its 2D and its 3D scans, and one under the name of MPRAGE. Each has two forms that differ in
one line: dpm_NAME.xml starts the gadget for each scan, dpm_NAME_connect.xml uses a running `dpmrecon serve`.
"""

import argparse
from pathlib import Path

from dpmrecon.options import OPTIONS

COMPOSE = Path(__file__).parent.parent / "docker/chains"  # of docker/compose.yaml, where the service has a name
CONTRASTS = {"flair": "flair", "t1": "t1", "mprage": "t1", "t2": "t2", "swi": "swi", "dwi": "dwi"}  # of chains, by name

CARTESIAN = (
    ("mricore", "NoiseAdjustGadget", {}),
    ("mricore", "AsymmetricEchoAdjustROGadget", {}),
    ("mricore", "RemoveROOversamplingGadget", {}),
)
EPI = (
    ("mricore", "NoiseAdjustGadget", {}),
    ("epi", "EPIReconXGadget", {}),
    ("epi", "EPICorrGadget", {}),
    ("epi", "FFTXGadget", {}),
    ("epi", "OneEncodingGadget", {}),
)
SLICES = (
    # a trigger on the slice would cut scans with interleaved slices into pieces
    ("mricore", "AcquisitionAccumulateTriggerGadget", {"trigger_dimension": "repetition"}),
    ("mricore", "BucketToBufferGadget", {"split_slices": "true", "ignore_segment": "true"}),
    (
        "mricore",
        "GenericReconCartesianReferencePrepGadget",
        {"prepare_ref_always": "true", "ref_fill_into_data_embedded": "true"},
    ),
)
IMAGES = (
    ("mricore", "ComplexToFloatGadget", {}),
    ("mricore", "FloatToUShortGadget", {"max_intensity": "32767", "min_intensity": "0", "intensity_offset": "0"}),
    ("mricore", "ImageFinishGadget", {}),
)
EXECUTE = '<execute name="dpmrecon.gadget" target="reconstruct" type="python"/>'

TEMPLATE = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- Written by make_chains.py. {what} RESEARCH: not for diagnostic use.
     Properties of dpmrecon are the options of `dpmrecon replay`: {options}. -->
<configuration>
    <version>2</version>
    <readers>
        <reader><dll>gadgetron_core_readers</dll><classname>AcquisitionReader</classname></reader>
        <reader><dll>gadgetron_core_readers</dll><classname>WaveformReader</classname></reader>
    </readers>
    <writers>
        <writer><dll>gadgetron_core_writers</dll><classname>ImageWriter</classname></writer>
    </writers>
    <stream>
{before}
        <external>
            {action}
            <configuration>
                <property name="contrast" value="{contrast}"/>
            </configuration>
        </external>
{after}
    </stream>
</configuration>
"""


def gadget(library: str, name: str, properties: dict[str, str]) -> str:
    lines = [f"<dll>gadgetron_{library}</dll><classname>{name}</classname>"]
    lines += [f'<property name="{key}" value="{value}"/>' for key, value in properties.items()]
    return "        <gadget>\n" + "".join(f"            {line}\n" for line in lines) + "        </gadget>"


def chain(contrast: str, connect: tuple[str, int] | None) -> str:
    """The XML of one chain; connect: address and port of the service, None starts the gadget instead."""
    before = (*(EPI if contrast == "dwi" else CARTESIAN), *SLICES)
    what = "2D EPI, ghosts corrected by Gadgetron." if contrast == "dwi" else "2D and 3D scans."
    service = [name for name, option in OPTIONS.items() if not (option.raw or (connect and option.process))]
    return TEMPLATE.format(
        what=what,
        options=", ".join(service),
        before="\n".join(gadget(*entry) for entry in before),
        after="\n".join(gadget(*entry) for entry in IMAGES),
        action=f'<connect address="{connect[0]}" port="{connect[1]}"/>' if connect else EXECUTE,
        contrast=contrast,
    )


def chains(address: str, port: int) -> dict[str, str]:
    """File names and texts of all chains."""
    found = {}
    for name, contrast in CONTRASTS.items():
        found[f"dpm_{name}.xml"] = chain(contrast, None)
        found[f"dpm_{name}_connect.xml"] = chain(contrast, (address, port))
    return found


def compose_chains() -> dict[str, str]:
    """Those that reach the service by its name in docker/compose.yaml."""
    return {name: text for name, text in chains("dpmrecon", 9020).items() if name.endswith("_connect.xml")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1", help="of `dpmrecon serve`")
    parser.add_argument("--port", type=int, default=9020)
    parser.add_argument("--out", type=Path, help="default: here, and docker/chains for the compose file")
    args = parser.parse_args()
    for name, text in chains(args.address, args.port).items():
        ((args.out or Path(__file__).parent) / name).write_text(text)
    if args.out is None:
        for name, text in compose_chains().items():
            (COMPOSE / name).write_text(text)


if __name__ == "__main__":
    main()
