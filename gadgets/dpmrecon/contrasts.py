"""The contrasts that a prior has labels for, and the one table from the names of protocols to them."""

import re

CONTRAST_LABELS = ("flair", "t1", "t2", "dwi", "swi")
LABELS = (*CONTRAST_LABELS, "spare1", "spare2", "spare3")  # of a network: spare ones for a site's own contrasts

# The first that matches wins. Letters before short names, and digits behind, make others of them; but sT1W and eT1W are
# T1W, and gradient echoes of T2 are of T2*
PATTERNS = (
    (r"t1.*(flair|dark.*fluid)|flair.*t1", "t1"),
    (r"flair|tirm.*dark|dark.*fluid", "flair"),
    (r"(?<![a-z])(dwi|dti)|diff(?!use)", "dwi"),
    (r"(?<![a-z])(swi|swan)(?![a-z])", "swi"),
    (r"t2[ _-]?(\*|star)|t2.*(?<![a-z])(fl[23]d|(hemo|ffe|gre)(?![a-z]))", None),
    (r"(?<![a-z])(ax|sag|cor|tra|[se](?=t1w))?t1(?!\d)|mprage|mp2rage|bravo", "t1"),
    (r"(?<![a-z])(ax|sag|cor|tra|[se](?=t2w))?t2(?!\d)", "t2"),
)


def label_of(*names: object) -> str | None:
    """The label of the first telling name of a protocol, sequence or file; None where none does."""
    for name in names:
        for pattern, label in PATTERNS:
            if re.search(pattern, str(name or "").lower()):
                return label
    return None
