"""Sphinx settings: the site is made of the Markdown files of this repository where they lie, and of the docstrings.

The folder that is read is the repository's root, so a link that works on a code host works in the site: to a page, to
an image, and to a source file, which the site carries as a download. docs/index.md is the first page and, section by
section, the navigation. `<!-- generated: NAME -->` in a page is replaced by what `reference.py` makes, and
`<!-- include: PATH -->` by a script.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "src"), *map(str, ROOT.glob("packages/*/src"))]

import reference
from sphinx.application import Sphinx

import prism_policy

project = "prism-policy"
author = "The prism-policy authors"
project_copyright = author
version = release = prism_policy.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "docs/index"
ROOT_ONLY = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
include_patterns = [
    *ROOT_ONLY,
    "docs/*.md",
    "docs/api/*.md",
    "results/*.md",
    "results/*/*.md",
    "benchmarks/*.md",
    "examples/*.md",
    "integrations/*/README.md",
    "packages/*/README.md",
]
exclude_patterns = [
    ".venv",
    ".git",
    "build",
    "dist",
    "runs",
    "src",
    "tests",
    "**/node_modules",
]

myst_heading_anchors = 4  # as code hosts name them
myst_enable_extensions = ["strikethrough"]
suppress_warnings = ["ref.python"]  # a type whose name several modules have is shown without a link

default_role = "code"  # docstrings write `x` for code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_mock_imports = ["libero", "ray", "rerun", "wandb", "robosuite", "mujoco", "tensorboard", "pyarrow"]
python_display_short_literal_types = True
python_use_unqualified_type_names = True
toc_object_entries = False
viewcode_follow_imported_members = False

html_theme = "furo"
html_title = f"prism-policy {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_extra_path = ["start"]
html_copy_source = False
html_show_search_summary = False  # would be fetched, which a browser refuses a page that was opened from a disk
html_show_sphinx = False
templates_path = []
pygments_style = "friendly"
pygments_dark_style = "monokai"


def navigation(index: str) -> str:
    """Toctrees of the first page: each `## Section` is a caption, each link to a page below it an entry."""
    trees = []
    for section in re.split(r"^## ", re.sub(r"<!--.*?-->", "", index, flags=re.DOTALL), flags=re.MULTILINE)[1:]:
        pages = [
            f"{label} </{(Path('docs') / link).with_suffix('')}>"
            for label, link in re.findall(r"^- \[([^]]+)\]\(([^):#]+\.md)\)", section, re.MULTILINE)
        ]
        pages = [page.replace("/docs/../", "/") for page in pages]
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {section.splitlines()[0]}", "", *pages, "```"]))
    return "\n\n".join(trees)


def included(path: str) -> str:
    """A script of this repository as a block of code."""
    return f"```python\n{(ROOT / path).read_text()}```"


def read(app: object, docname: str, source: list[str]) -> None:
    """Complete a page before it is parsed."""
    text = re.sub(r"<!-- generated: (\w+) -->", lambda match: reference.GENERATED[match[1]](), source[0])
    text = re.sub(r"<!-- include: (\S+) -->", lambda match: included(match[1]), text)
    if docname == root_doc:
        text += f"\n\n{navigation(text)}\n"
    elif re.fullmatch(r"results/[^/]+/table|(integrations|packages)/[^/]+/README", docname):  # reached by a link alone
        text = f"---\norphan: true\n---\n\n{text}"
    source[0] = text


def fences(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turn Markdown's blocks of code, which docstrings use, into those of reStructuredText."""
    inside = False
    made: list[str] = []
    for line in lines:
        if line.strip().startswith("```"):
            inside = not inside
            made += ["", ".. code-block:: python", ""] if inside else [""]
        else:
            made.append(f"    {line}" if inside else line)
    lines[:] = made


def set_aside(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keep the text under a field from napoleon, which takes what is before its first colon for a type."""
    if what == "attribute":
        ASIDE[name] = list(lines)
        lines.clear()


def put_back(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Give a field its text again."""
    lines[:] = ASIDE.pop(name, lines)


ASIDE: dict[str, list[str]] = {}


def setup(app: Sphinx) -> None:
    """Write the pages of the API before Sphinx looks for pages, and complete others as they are read."""
    reference.write_api(ROOT / "docs" / "api")
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", fences, priority=50)
    app.connect("autodoc-process-docstring", set_aside, priority=100)
    app.connect("autodoc-process-docstring", put_back, priority=900)
