"""The parts of the documentation that follow from the code: commands, settings, the modules of the API."""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

import prism_policy
from prism_policy.cli.command import PLAIN, RunCommand
from prism_policy.cli.encoders import Info, InfoDemos, InfoEncoders
from prism_policy.cli.main import COMMANDS
from prism_policy.config import presets
from prism_policy.config.settings import RunConfig

ROOT = Path(__file__).parents[2]
PACKAGE = Path(prism_policy.__file__).parent


def parser_of(of: type, **options: object) -> argparse.ArgumentParser:
    """Return the parser that the command line uses."""
    with warnings.catch_warnings():  # tyro is pinned; it has no other way to the flags
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(of, config=PLAIN, **options)  # type: ignore[arg-type]


def escaped(text: str) -> str:
    """Text of a docstring, with no markup of its own."""
    text = re.sub(r"(?<![`\w-])(--[\w.-]*\w(?: \d[\w.-]*\b)?)", r"`\1`", text)
    return re.sub(r"([|<>*\[\]])", r"\\\1", " ".join(text.split()))


def flags(actions: list[argparse.Action]) -> Iterator[str]:
    """An item for each flag: its name, what it takes, its default, what it does."""
    for action in actions:
        metavar = str(action.metavar or "")
        name = ", ".join(action.option_strings)
        takes = "" if metavar.startswith("{") and len(metavar) > 40 else metavar
        text, found, default = (action.help or "").removesuffix(" (required)").rpartition(" (default: ")
        default = default.removesuffix(")").strip("'") if found else default
        if not found:
            text, default = default, ""
        shown = f", by default `{default}`" if default not in ("", "None", "False") and action.option_strings else ""
        choices = f" One of `{metavar.strip('{}').replace(',', '`, `')}`." if metavar and not takes else ""
        yield f"- `{f'{name} {takes}'.strip()}`{shown}: {escaped(text)}{choices}"


def titled_commands() -> list[tuple[str, type]]:
    """Commands by what is typed; `prism info` is two."""
    titled: list[tuple[str, type]] = []
    for name, command in COMMANDS.items():
        titled += [("info FILE", InfoDemos), ("info encoders", InfoEncoders)] if command is Info else [(name, command)]
    return titled


def commands() -> str:
    """Every command with its flags, from the parser itself."""
    lines: list[str] = []
    for name, command in titled_commands():
        parser = parser_of(command, prog=f"prism {name}")
        lines += ["", f"## prism {name}", "", *paragraphs(parser.description or ""), ""]
        actions = [action for action in parser._actions if action.dest != "help"]
        lines += flags(actions)
        if issubclass(command, RunCommand):
            lines += ["", "And every [setting](settings.md) by its name."]
    return "\n".join(lines)


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a docstring, its angle brackets and stars not markup."""
    return [line for block in text.split("\n\n") for line in (escaped(block), "")]


def settings() -> str:
    """Every setting of a run, group by group, with the defaults of the preset nano."""
    parser = parser_of(RunConfig, prog="prism train", default=presets.nano())
    groups: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            groups.setdefault(action.dest.rpartition(".")[0], []).append(action)
    about = {str(group.title).removesuffix(" options"): group.description for group in parser._action_groups}
    lines: list[str] = []
    for group, actions in groups.items():
        lines += ["", f"## {group or 'The run'}", "", escaped(about.get(group) or ""), "", *flags(actions)]
    return "\n".join(lines)


def packages() -> list[Path]:
    """Folders of the packages that are documented: this one, and those of the distributions beside it."""
    beside = [init.parent for init in sorted(ROOT.glob("packages/*/src/*/__init__.py"))]
    return [PACKAGE, *beside]


def modules() -> dict[str, list[str]]:
    """Modules of each page: of a room of this package, or of all of another one."""
    pages: dict[str, list[str]] = {}
    for package in packages():
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package).with_suffix("").parts
            if (
                parts[-1] == "__init__" and len(parts) == 2 and "def " in file.read_text()
            ):  # a room with names of its own
                parts = parts[:1]
            if not parts[-1].startswith("__") and parts[0] != "cli":
                page = parts[0] if package == PACKAGE else package.name
                pages.setdefault(page, []).append(".".join((package.name, *parts)))
    return pages


def source_of(module: str) -> Path:
    """File of a module, or of a package its `__init__.py`."""
    package, *parts = module.split(".")
    file = next(folder for folder in packages() if folder.name == package).joinpath(*parts)
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def summary(page: str) -> str:
    """First sentence of the docstring of what a page is about."""
    module = page if page in {package.name for package in packages()} else f"{PACKAGE.name}.{page}"
    return (ast.get_docstring(ast.parse(source_of(module).read_text())) or "").partition("\n")[0]


def functions(file: Path) -> list[str]:
    """Public functions that a file defines."""
    names = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if not name.startswith("_")]


def write_api(folder: Path) -> None:
    """Write a page for each room that imports its modules and shows their docstrings."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for page, names in modules().items():
        alone = f"{PACKAGE.name}.{page}"  # the room itself, if it has names of its own
        lines = [f"# {page}", "", *([] if alone in names else [escaped(summary(page)), ""])]
        for name in names:
            file = source_of(name)
            own = functions(file) if file.name == "__init__.py" else []
            members = f"\n   :members: {', '.join(own)}" if own else ""  # what it imports is shown where it is defined
            heading = [] if name == alone else [f"## {name.partition('.')[2]}", ""]
            lines += [*heading, f"```{{eval-rst}}\n.. automodule:: {name}{members}\n```", ""]
        (folder / f"{page}.md").write_text("\n".join(lines))


def public() -> str:
    """The names that `import prism_policy as pp` gives, documented where they are defined."""
    lines = ["| name | is |", "|---|---|"]
    for name in prism_policy.__all__:
        thing = getattr(prism_policy, name)
        home = str(getattr(thing, "__module__", None) or thing.__name__)
        role = f"{{py:obj}}`pp.{name} <{home if name == 'presets' else f'{home}.{name}'}>`"
        doc = escaped((thing.__doc__ or "").strip().partition("\n\n")[0])
        lines.append(f"| {role} | {doc} |")
    return "\n".join(lines)


def rooms() -> str:
    """The rooms, each a page."""
    pages = modules()
    lines = [f"- [{room}](api/{room}.md): {escaped(summary(room))}" for room in pages]
    toctree = ["```{toctree}", ":hidden:", "", *(f"api/{room}" for room in pages), "```"]
    return "\n".join([*lines, "", *toctree])


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "public": public,
    "rooms": rooms,
}
"""What `<!-- generated: NAME -->` in a page stands for."""
