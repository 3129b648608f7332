"""The documentation builds without a warning, its commands do what they say, and it names the version that there is."""

import re
import shlex
import subprocess
from pathlib import Path

import dpmrecon.cli
import dpmtrain.cli
import pytest
import yaml
from dpmrecon.version import __version__

from support.forked import forked
from support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"dpmrecon": dpmrecon.cli.main, "dpmtrain": dpmtrain.cli.main}
# `exec dpmrecon` names a container
OURS = re.compile(r"(?:^|[\s/])(?<!exec )(dpmrecon|dpmtrain) ([a-z][\w-]*)([^|;&]*)")


def blocks(page: Path) -> list[tuple[str, str, list[str]]]:
    """(line before it, kind, lines) of each fenced block; lines that go on are one."""
    found, before = [], ""
    lines = page.read_text().splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            end = lines.index("```")
            text = "\n".join(lines[:end]).replace("\\\n", " ")
            found.append((before, line[3:], text.splitlines()))
            lines = lines[end + 1 :]
        before = line
    return found


def ran(command: str, folder: Path) -> subprocess.CompletedProcess:
    program, *arguments = shlex.split(command, comments=True)
    return forked(PROGRAMS[program], *arguments, folder=folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_block_is_run_or_says_why_not(page):
    for before, kind, lines in blocks(page):
        if kind in ("", "console", "bash", "shell"):
            assert re.match(r"<!-- not run: .{10,} -->", before), f"{page.name}: {lines[0]}"


RUN = [page for page in PAGES if any(kind == "sh" for _, kind, _ in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda path: path.stem)
def test_commands_run(page, tmp_path):
    for _, kind, lines in blocks(page):
        for line in lines if kind == "sh" else ():
            done = ran(line, tmp_path)
            assert done.returncode == 0, f"{line}\n{done.stdout.decode()}{done.stderr.decode()}"


def test_some_pages_are_run():
    assert {"first_scan", "compare"} <= {page.stem for page in RUN}


@pytest.fixture(scope="module")
def help_of():
    found: dict[tuple[str, ...], str] = {}

    def text(*command: str) -> str:
        if command not in found:
            found[command] = ran(" ".join([*command, "--help"]), ROOT).stdout.decode()
        return found[command]

    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_and_options_exist(page, help_of):
    """Those that are not run too: in blocks, and in the text between backquotes."""
    told = [line for _, _, lines in blocks(page) for line in lines]
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    told += [text.replace("\n", " ") for text in re.findall(r"`([^`]+)`", prose)]
    for line in told:
        for program, command, rest in OURS.findall(line):
            assert re.search(rf"^    {command}\b", help_of(program), re.MULTILINE), f"{page.name}: {line}"
            known = help_of(program, command)
            inner = re.match(r" ([a-z]\w+)", rest)
            if f"{program} {command}" == "dpmtrain study" and inner:
                known = help_of(program, command, inner.group(1))
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", rest):
                assert re.search(rf"{option}\b", known), f"{page.name}: {line}"


def test_an_option_that_is_not_there_is_found(help_of):
    assert "--tuth" not in help_of("dpmrecon", "replay") and "--truth" in help_of("dpmrecon", "replay")


def test_links_lead_somewhere():
    """Also to folders, which the site's build does not look for."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = target.split("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[docs]")
    from sphinx.cmd.build import main

    options = ["-W", "--keep-going", "-q", "-c", "docs", ".", str(tmp_path / "site")]
    done = forked(main, *options, folder=ROOT)
    assert done.returncode == 0, done.stderr.decode()
    pages = tmp_path / "site" / "docs"
    assert (pages / "commands.html").read_text().count("usage: dpmrecon ") > 8
    assert "vein-phase" in (pages / "options.html").read_text()
    assert "estimate_coil_maps" in (pages / "python.html").read_text()
    assert 'src="http' not in (pages / "index.html").read_text()  # it opens without a network


def test_versions_agree():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert f"\n## {__version__}\n" in (ROOT / "docs" / "changelog.md").read_text()
    git = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD", "v[0-9]*"]
    tags = subprocess.run(git, capture_output=True, text=True).stdout.split()
    assert tags in ([], [f"v{__version__}"])
