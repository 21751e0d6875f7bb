"""The look that the HTML pages of all stages share, and how their templates are read. A page
needs no other file.
"""

from pathlib import Path

import jinja2
from markupsafe import Markup

_STYLE = Path(__file__).with_name("pages.css")


def environment() -> jinja2.Environment:
    """Templates escape what they are given, refuse what they are not, and have the common CSS as
    `style`.
    """
    found = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["style"] = Markup(_STYLE.read_text(encoding="utf-8"))
    return found
