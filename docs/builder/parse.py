"""Is every command of the documentation one that there is? `prism` by its own parser, without running anything."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import reference
from snippets import Block, blocks, inline, shell_commands

from prism_policy.cli.command import RunCommand
from prism_policy.cli.main import COMMANDS, parse
from prism_policy.config import presets
from prism_policy.config.settings import RunConfig
from prism_policy.errors import PrismError

ROOT = Path(__file__).parents[2]
PAGES = [  # not benchmarks/RESULTS.md and CHANGELOG.md, which say what was, in the words of then
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for room in ("docs", "results", "examples") for page in (ROOT / room).glob("*.md")),
    *sorted((ROOT / "results").glob("*/README.md")),
]
OTHERS = {
    *(f"lerobot-{name}" for name in ("train", "eval", "rollout", "record")),
    *("torchrun", "pip", "uv", "pytest", "python", "h5clear", "ray", "make", "git"),
}
"""Commands of others that the pages name; their flags are theirs."""


def complaints(page: Path) -> list[str]:
    """What a page says that is not so: commands, flags, make targets, extras and scripts that do not exist."""
    there = blocks(page)
    found = [f"{block.where}: {text}" for block in there for text in of_block(block)]
    comments = re.findall(r"^<!-- check: (?!with )", page.read_text(), re.M)
    if len(comments) != sum(bool(block.mode) for block in there):
        found.append(f"{page.name}: a comment `check:` of an unknown form, or without a block right below it")
    for line, code in inline(page):
        found += [f"{page.name}:{line}: `{code}`: {text}" for text in of_inline(code)]
    return found


def of_block(block: Block) -> Iterator[str]:
    """Complaints about a block of shell commands."""
    for words in shell_commands(block.commands):
        if text := complaint(words):
            yield f"{' '.join(words)}: {text}"


def complaint(words: list[str]) -> str:
    """What is wrong with a command; "" for nothing."""
    program, *rest = words
    if program == "prism":
        return of_prism(rest)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        unknown = [word for word in rest if "=" not in word and not word.startswith("-") and word not in targets]
        return f"no target {unknown[0]}" if unknown else ""
    if program in ("python", "bash", "pytest") and rest and rest[0].endswith((".py", ".sh")):
        return "" if (ROOT / rest[0]).exists() else f"there is no {rest[0]}"
    return extras(" ".join(words))


def extras(text: str) -> str:
    """What is wrong with the extras that a line names."""
    there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [name.strip() for group in re.findall(r"prism-policy\[([\w, -]+)\]", text) for name in group.split(",")]
    unknown = [name for name in named if name not in there]
    return f"no extra {unknown[0]}" if unknown else ""


def of_prism(words: list[str]) -> str:
    """What the parser says against arguments of `prism`; a dataset need not be there."""
    output = io.StringIO()
    if words[:1] == ["train"] and "--dataset" in words:  # what it holds decides the task, and it is not here
        at = words.index("--dataset")
        words = words[:at] + words[at + 2 :]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            parse(words)
        except SystemExit as end:
            helped = "--help" in words or "--help-all" in words or not words
            if end.code and not helped:
                return " ".join(re.sub(r"[│╭╮╰╯─]", "", output.getvalue()).split())
        except PrismError as error:
            return str(error)
    return ""


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """Flags that a command takes, settings included."""
    parsers = [reference.parser_of(c) for name, c in reference.titled_commands() if name.split()[0] == command]
    if issubclass(COMMANDS[command], RunCommand):
        parsers.append(reference.parser_of(RunConfig, default=presets.nano()))
    return frozenset(_both(option) for p in parsers for action in p._actions for option in action.option_strings)


def _both(option: str) -> str:
    return option.replace("_", "-")


@functools.cache
def all_flags() -> frozenset[str]:
    """Flags of any command; of others those that the pages name."""
    others = {"--constraint", "--index-url", "--no-deps", "--nnodes"}
    return frozenset().union(*map(flags_of, COMMANDS)) | others


def of_inline(code: str) -> Iterator[str]:
    """Complaints about code within a sentence: which may leave out what a command needs, but invent nothing."""
    words = code.split()
    if words[0] == "prism" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
        if words[1] not in COMMANDS:
            yield f"no command {words[1]}"
            return
        known = flags_of(words[1])
    elif words[0] == "make" and len(words) > 1:
        if text := complaint(words):
            yield text
        return
    else:
        if text := extras(code):
            yield text
        if words[0] in OTHERS:
            return
        known = all_flags()
    for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code):
        name = _both(flag.rstrip("."))
        if not {name, name.replace("--no-", "--"), name.replace(".no-", ".")} & known:
            yield f"no flag {flag}"
