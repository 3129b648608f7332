"""The documentation's settings: `make docs`. Sources are Markdown and the docstrings; warnings are errors.

Pages and reports link to each other, and to files of the repository, as they lie in it.
"""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dpmrecon
from docutils import nodes
from dpmrecon.cli import main as dpmrecon_main
from dpmrecon.options import OPTIONS
from dpmtrain.cli import main as dpmtrain_main
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
project = "dpmrecon"
author = copyright = "the dpmrecon authors"
version = release = dpmrecon.__version__
root_doc = "docs/index"
include_patterns = ["docs/**", "training/reports/**", "CONTRIBUTING.md", "SECURITY.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
# reports are found by links and by the search; their commands write tables, not titles
suppress_warnings = ["toc.not_included", "myst.header"]
autodoc_typehints = "none"  # docstrings name types and shapes
html_theme = "furo"
html_title = f"dpmrecon {version}"
html_extra_path = ["root"]  # index.html, which leads to the first page
html_copy_source = False
VALUES = {str: "text", int: "whole number", float: "number", bool: "on, off", Path: "file"}
PROGRAMS: dict[str, Callable[[list[str]], int]] = {"dpmrecon": dpmrecon_main, "dpmtrain": dpmtrain_main}


def help_of(program: str, *command: str) -> str:
    """What `program command --help` prints."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        PROGRAMS[program]([*command, "--help"])
    return written.getvalue()


class Commands(SphinxDirective):
    """```{commands} dpmrecon```: a section for each command, with its help."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        program, found = self.arguments[0], []
        for name in re.findall(r"^    ([a-z][\w-]*)", help_of(program), re.MULTILINE):
            section = nodes.section(ids=[f"{program}-{name}"], names=[f"{program} {name}"])
            section += nodes.title("", f"{program} {name}")
            section += nodes.literal_block("", help_of(program, name), language="none")
            found.append(section)
        return found


class OptionTable(SphinxDirective):
    """```{option-table}```: the options of a reconstruction, by the schema of `dpmrecon.options`."""

    def run(self) -> list[nodes.Node]:
        rows = ["| option, property | what | values | property of |", "|---|---|---|---|"]
        for name, option in OPTIONS.items():
            values = ", ".join(option.choices) or option.metavar or VALUES[option.kind]
            where = "chains, MRD clients"
            if option.process:
                where = "chains that start the gadget"
            elif option.raw:
                where = "command line alone" if name == "group" else "MRD clients"
            rows.append(" | ".join(["", f"`{name}`", option.help.replace("|", "\\|"), values, where, ""]).strip())
        return self.parse_text_to_nodes("\n".join(rows))


class PublicNames(SphinxDirective):
    """```{public-names}```: all of `dpmrecon.__all__`, by their docstrings."""

    def run(self) -> list[nodes.Node]:
        lines = ["```{eval-rst}"]
        for name in dpmrecon.__all__[1:]:
            found: Any = getattr(dpmrecon, name)
            kind = (
                "function" if not isinstance(found, type) else "exception" if issubclass(found, Exception) else "class"
            )
            lines += [f".. auto{kind}:: dpmrecon.{name}", *(["   :members:"] if kind == "class" else []), ""]
        return self.parse_text_to_nodes("\n".join([*lines, "```"]))


class Reports(SphinxDirective):
    """```{reports} FOLDER```: links to all pages below a folder, most of which have no title."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        pages = sorted(ROOT.joinpath(self.arguments[0]).glob("*/**/*.md"))
        names = [path.relative_to(ROOT) for path in pages]
        found = [f"- [{name.parent.relative_to(self.arguments[0])}: {name.stem}](/{name})" for name in names]
        return self.parse_text_to_nodes("\n".join(found))


def as_written(app: Sphinx, what: str, name: str, found: Any, settings: Any, lines: list[str]) -> None:
    """Formulas in docstrings are no markup."""
    lines[:] = [re.sub(r"(?<!`)([|*])", r"\\\1", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_written, priority=400)  # before napoleon reads sections
    app.add_directive("commands", Commands)
    app.add_directive("option-table", OptionTable)
    app.add_directive("public-names", PublicNames)
    app.add_directive("reports", Reports)
