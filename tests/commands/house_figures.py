"""Sizes of both packages, lengths of comments, slow tests: `python tests/commands/house_figures.py [REPORT.xml ...]`.

Lines of code: without blanks, comments and docstrings. A comment: what stands on lines one below the other. A phrase of
a docstring ends at a full stop, colon or semicolon, or where a new paragraph or entry begins. REPORT.xml: what
`pytest --junitxml` wrote, one for each folder of tests; the ten slowest tests of all of them are listed.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PACKAGES = ("gadgets/dpmrecon", "training/dpmtrain")
LONG = 14  # words, and more than these are many
SLOWEST = 10
DIRECTIVES = ("fmt:", "type:", "noqa")  # comments that a tool reads
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
ENDS = re.compile(r"(?<=[.:;!?])\s+|\n\s*\n|\n-{3,}\n")


def code_lines(source: str) -> int:
    """Lines that hold a token which is neither comment nor docstring."""
    docstrings = {
        line
        for node in documented(source)
        if ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def documented(source: str) -> list:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def comments(source: str) -> list[str]:
    """Every comment; lines of comment alone that follow each other are one."""
    found: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("#").strip()
        if token.type != tokenize.COMMENT or text.startswith(DIRECTIVES):
            continue
        alone = token.line.lstrip().startswith("#")
        if alone and last == token.start[0] - 1:
            found[-1] += f" {text}"
        else:
            found.append(text)
        last = token.start[0] if alone else -1
    return found


def phrases(source: str) -> list[str]:
    """Of all docstrings."""
    texts = [ast.get_docstring(node) or "" for node in documented(source)]
    return [phrase for text in texts for phrase in ENDS.split(text) if phrase.strip()]


def told(name: str, found: list[str]) -> str:
    """How many are long."""
    long = sum(len(text.split()) > LONG for text in found)
    return f"{name} over {LONG} words: {long} of {len(found)}, {long / len(found):.1%}"


def slowest(reports: list[str]) -> list[str]:
    """The slowest tests with their set-up, and the time of all."""
    cases = [case for path in reports for case in ElementTree.parse(path).iter("testcase")]
    times = sorted((float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}") for case in cases)
    lines = [f"{seconds:7.1f} s  {name}" for seconds, name in times[::-1][:SLOWEST]]
    return [*lines, f"{sum(seconds for seconds, _ in times):7.1f} s  all {len(times)} tests"]


def main() -> None:
    for package in PACKAGES:
        sources = [path.read_text() for path in sorted((ROOT / package).rglob("*.py"))]
        lines = sum(source.count("\n") for source in sources)
        print(f"{package}: {sum(map(code_lines, sources))} lines of code, {lines} in all, {len(sources)} files")
        print("  " + told("comments", [text for source in sources for text in comments(source)]))
        print("  " + told("phrases of docstrings", [text for source in sources for text in phrases(source)]))
    for line in slowest(sys.argv[1:]) if sys.argv[1:] else ():
        print(line)


if __name__ == "__main__":
    main()
