"""Pages of HTML from templates: what is put into them is escaped, and they load nothing from elsewhere."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prism_policy import __version__


def percent(share: float) -> str:
    """0.95 as 95%, 0.955 as 95.5%."""
    return f"{100 * share:.0f}%" if round(1000 * share) % 10 == 0 else f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """0.25 as 0.25 s, 125 as 2 min 05 s."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def unbroken(text: str) -> str:
    """Numbers that belong together, kept on one line."""
    for word in ("±", "to", "of"):
        text = text.replace(f" {word} ", f"\N{NO-BREAK SPACE}{word}\N{NO-BREAK SPACE}")
    return text


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prism_policy", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "unbroken": unbroken}
    environment.globals["version"] = __version__
    return environment


def render(template: str, **values: Any) -> str:
    """The page of a template, named by its path in the package, such as reports/report.html."""
    return _environment().get_template(template).render(values)


def data_url(content: bytes | Path, media_type: str) -> str:
    """An image or video, or the file of one, as an address that holds it."""
    content = content.read_bytes() if isinstance(content, Path) else content
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
