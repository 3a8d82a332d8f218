"""Benchmarks, docs and README mention only what there is: modules, names, files."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *sorted(page for room in ("docs", "benchmarks", "results") for page in (ROOT / room).glob("*.md")),
]
HISTORY = ("CHANGELOG.md", "RESULTS.md")  # say what was, in the words of then
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
SHELL = sorted((ROOT / "scripts").glob("*.sh"))


def imported(code: str) -> list[tuple[str, str]]:
    """(module, name) of everything that code imports from this package."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    return [(n.module, a.name) for n in nodes if (n.module or "").startswith("prism_policy") for a in n.names]


def exists(module: str, name: str) -> bool:
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        return not str(error.name).startswith("prism_policy")  # an optional package that is not installed
    except Exception as error:  # LIBERO's modules, say, refuse with a sentence where it is not installed
        return "installed" in str(error)
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_benchmarks_import_what_there_is(script: Path) -> None:
    names = imported(script.read_text())
    assert [f"{module}.{name}" for module, name in names if not exists(module, name)] == []


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_import_what_there_is(script: Path) -> None:
    lines = [line.strip() for line in script.read_text().splitlines()]
    names = imported("\n".join(line for line in lines if line.startswith("from prism_policy")))
    assert [f"{module}.{name}" for module, name in names if not exists(module, name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_mention_what_there_is(page: Path) -> None:
    text = page.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert [f"{module}.{name}" for module, name in imported(block) if not exists(module, name)] == []
    for dotted in () if page.name in HISTORY else re.findall(r"\bprism_policy((?:\.\w+)+)", text):
        parent, _, name = f"prism_policy{dotted}".rpartition(".")
        assert exists(parent, name), f"prism_policy{dotted}"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"(?<![\w/])((?:tests|benchmarks|scripts|src|docs)/[\w/.-]+\.(?:py|sh|md|json|html))", text):
        assert (ROOT / path).exists(), path
