"""The commands and snippets of a page, and what the page says about running them.

A hidden comment right above a block says how it is checked:

    <!-- check: run -->                                     as it stands, in the page's own folder
    <!-- check: run; prism train + --train.steps 2 -->      in a cheap form: these flags are added to that command
    <!-- check: run; prism train + small -->                the same with the flags that `check.py` calls small
    <!-- check: run; skip prism download: needs the hub --> all but the lines that begin so
    <!-- check: not run: needs a robot -->                  listed with its reason
    <!-- check: file my_sim.py -->                          kept under this name for the blocks after it
    <!-- check: with demos.hdf5 runs/a -->                  anywhere: small demonstrations and runs to use

Lines of a comment that follow the first are run before the block: Python before Python, shell before shell. Every
`prism ...` of every page, run or not, must be one that the parser takes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHELL = ("bash", "sh", "console", "")
BLOCK = re.compile(
    r"(?:<!-- check: (?P<check>(?:run|not run|file)\b.*?)-->\n\n?)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    line: int
    language: str
    code: str
    mode: str = ""
    """run, not run, file NAME, or nothing said."""
    reason: str = ""
    before: str = ""
    """Lines that are run first."""
    added: dict[str, list[str]] = field(default_factory=dict)
    """Command of prism -> flags of its cheap form."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Beginning of lines that are not run -> reason."""

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> str:
        """What a user would type: of a session with `$ ` its input, of a script all, of output nothing."""
        lines = self.code.splitlines()
        if self.language == "python":
            return ""
        if any(line.startswith("$ ") for line in lines):
            typed, goes_on = [], False
            for line in lines:
                if line.startswith("$ ") or (goes_on and line.startswith("> ")):
                    typed.append(line[2:])
                    goes_on = True
                elif typed and typed[-1].endswith("\\"):
                    typed.append(line)
                else:
                    goes_on = False
            return "\n".join(typed)
        return self.code if self.language in ("bash", "sh") else ""


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, with what is said about running them."""
    text = page.read_text()
    made = []
    for match in BLOCK.finditer(text):
        first, _, before = (match["check"] or "").partition("\n")
        mode, _, rest = first.strip().partition(": ") if first.startswith("not run") else (first.strip(), "", "")
        added, skipped = {}, {}
        if not rest:
            mode, *cheap = [part.strip() for part in mode.split(";")]
            for one in cheap:
                if one.startswith("skip "):
                    start, _, reason = one.removeprefix("skip ").partition(": ")
                    skipped[start] = reason
                else:
                    command, _, flags = one.partition(" + ")
                    added[command.removeprefix("prism ").strip()] = shlex.split(flags)
        line = text.count("\n", 0, match.start("code"))
        made.append(Block(page, line, match["language"], match["code"], mode, rest.strip(), before, added, skipped))
    return made


def needed(page: Path) -> list[str]:
    """Demonstrations and runs that a page's blocks use, by the names that the page gives them."""
    return [name for names in re.findall(r"<!-- check: with (.*?) -->", page.read_text()) for name in names.split()]


def shell_commands(script: str) -> Iterator[list[str]]:
    """Words of each command of a script; variables become 0, placeholders such as ... go."""
    script = re.sub(r"\\\n\s*>?", " ", script)
    script = re.sub(r"\$\{?\w+\}?", "0", script)
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        try:
            words = list(lexer)
        except ValueError:  # a quotation that a later line ends is nobody's command here
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|()"):
                if command := _without_prefix(command):
                    yield command
                command = []
            else:
                command.append(word)


def _without_prefix(words: list[str]) -> list[str]:
    """Drop `do`, assignments before a command, and placeholders."""
    while words and (words[0] in ("do", "then", "else") or re.match(r"\w+=", words[0])):
        words = words[1:]
    return [word for word in words if word not in ("...", "…")]


def inline(page: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each `code` of a page outside its blocks."""
    text = BLOCK.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    for match in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", text):
        yield text.count("\n", 0, match.start()) + 1, match[1]
