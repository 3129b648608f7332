"""Open data sets that are recognised, and whom of them no model may see."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """An open data set, recognised by its folder's name; subject: of all its files, None where their paths tell it."""

    source: str
    licence: str
    subject: str | None = None
    named_by_subject: bool = False


# The sources name the licence too: the cards of checkpoints quote them
KNOWN_SETS = {
    "open_ms": KnownSet("open_ms, CC-BY, Lesjak et al., Neuroinformatics 2016", "CC-BY"),
    "synthseg_labels": KnownSet(
        "SynthSeg label maps, Apache-2.0, Billot et al., Medical Image Analysis 2023", "Apache-2.0"
    ),
    "philips_dwi": KnownSet("philips_dwi, BSD-2-Clause, Chris Rorden 2021", "BSD-2-Clause", subject="philips_dwi"),
    "flair_1mm/py_synthsr": KnownSet("SynthSR example FLAIR, Apache-2.0", "Apache-2.0", named_by_subject=True),
    "t1_3d/colin27": KnownSet(
        "colin27, BSD-3-Clause as Debian's mricron-data has it, Holmes et al., JCAT 1998",
        "BSD-3-Clause",
        named_by_subject=True,
    ),
    "t1_3d/seg3d": KnownSet("Seg3D example T1, MIT", "MIT", named_by_subject=True),
    "flair_1mm/torchio_fernando": KnownSet("TorchIO example FLAIR, MIT", "MIT", named_by_subject=True),
}
FASTMRI = KnownSet(
    "fastMRI brain, Zbontar et al., arXiv 1811.08839; Knoll et al., Radiology: AI 2020", "fastMRI data use agreement"
)
# Never trained on, whatever --exclude says. Nothing is tuned on patient12 either
HELD_OUT = ("patient09", "patient12", "training_seg_02")
TUNED_ON = ("patient09", "training_seg_02")
