"""Pages of HTML that open without a network, from a template of Jinja."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BadInputError


def rendered(template: Path, **values: Any) -> str:
    """The page; what a text holds is shown and not obeyed. Raises BadInputError where jinja2 is not installed."""
    if find_spec("jinja2") is None:
        raise BadInputError("the page needs jinja2, which is not installed: pip install dpmrecon[page]")
    import jinja2

    loader = jinja2.FileSystemLoader(template.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template.name).render(**values)
