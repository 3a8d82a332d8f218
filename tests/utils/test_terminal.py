"""Names and messages reach the terminal as they are: no markup, no control characters; one place prints."""

from __future__ import annotations

import ast
import io
import subprocess
from pathlib import Path

import pytest
from rich.table import Table

import prism_policy
from commandline import prism
from prism_policy.utils.progress import Bar
from prism_policy.utils.terminal import Terminal, console, plain, shell

ROOT = Path(prism_policy.__file__).parent
NAMES = (
    "demo[v2].hdf5", "[/red]", "[bold]x", "[link=http://a]b[/link]", ":smile:", "\\[x]", "a b", "it's", "$(touch x)",
    "`id`", "-rf", "*?", "été", "山", "%s{0}", 'say "x"', "\\", "~", "#x", "a;b", "!x", "",
)  # fmt: skip
UNPRINTABLE = ("\x1b[31mred", "a\rb", "two\nlines", "bell\x07", "\x9b2J", "\u202egnp.exe", "\udcff", "tab\tx", "\x00")


@pytest.mark.parametrize("name", [n for n in NAMES if n])
def test_a_name_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print(f"File: {name}", name, style="red")
    table = Table(name, "x", title=name, box=None)
    table.add_row(name, "1")
    console.print(table)
    with Bar(name, 1) as bar:
        bar.update(1, name)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"File: {name}", name]
    assert all(name in line for line in lines)
    assert len(lines) == 6


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_what_would_move_the_cursor_is_spelled_out(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print(f"File: {name}", "next")
    table = Table(name, box=None)
    table.add_row(name)
    console.print(table)
    out = capsys.readouterr().out
    assert out.count("\n") == 4
    assert all(c.isprintable() or c == "\n" for c in out)
    assert out.splitlines()[0] == f"File: {plain(name)}"


def test_an_encoding_that_lacks_a_letter_spells_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    terminal = Terminal()
    terminal.file = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    terminal.print("File: été.hdf5")
    assert written.getvalue() == b"File: \\xe9t\\xe9.hdf5\n"


@pytest.mark.parametrize("name", [n for n in (*NAMES, *UNPRINTABLE) if "\x00" not in n])
def test_a_command_can_be_pasted_into_a_shell(name: str) -> None:
    command = shell("printf", "%s\\n", name)
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == name.encode("utf-8", "surrogateescape") + b"\n"


@pytest.mark.parametrize("name", ["demo[v2].hdf5", "[/red]", "a b", "\x1b[31mred", "two\nlines", "[red]"])
def test_a_complaint_about_a_name_is_one_line_with_all_of_it(tmp_path: Path, name: str) -> None:
    for arguments in (("info", tmp_path / name), ("evaluate", tmp_path / name), ("render", tmp_path / name)):
        done = prism(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert plain(name) in done.stderr
        assert "\x1b" not in done.stderr


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_nothing_else_prints() -> None:
    """Files of this package write to the terminal through `utils/terminal.py` alone, and no markup is written."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        where, text = path.relative_to(ROOT), path.read_text()
        if where.as_posix() in ("utils/terminal.py", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = called(node)
                if name in ("print", "warnings.warn", "traceback.print_exc", "Console", "rich.print", "input"):
                    wrong.append(f"{where}:{node.lineno}: {name}")
                if name.startswith(("sys.stdout.", "sys.stderr.")) or name.endswith((".from_markup", "console.out")):
                    wrong.append(f"{where}:{node.lineno}: {name}")
                if "console" in name and any(k.arg in ("markup", "emoji", "highlight") for k in node.keywords):
                    wrong.append(f"{where}:{node.lineno}: {name} with markup")
                if name.endswith("console.print"):
                    texts = [str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)]
                    broken = [t for t in texts if "\n" in t or "[/" in t or "[bold" in t]
                    wrong += [f"{where}:{node.lineno}: a line break or markup in {t!r}" for t in broken]
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.markup", "rich.text"):
                wrong.append(f"{where}:{node.lineno}: from {node.module}")
    assert not wrong, "\n".join(wrong)


def test_paths_in_commands_are_quoted() -> None:
    """A command in a message is made by `shell` where a value is part of it."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                for before, value in zip(node.values, node.values[1:], strict=False):
                    text = str(before.value) if isinstance(before, ast.Constant) else ""
                    command = text.rpartition("prism ")[2] if "prism " in text else ""
                    if command[:1].isalpha() and isinstance(value, ast.FormattedValue) and text.endswith(" "):
                        words = command.split()
                        if words[0] in (
                            "info",
                            "train",
                            "evaluate",
                            "compare",
                            "saliency",
                            "serve",
                            "render",
                            "report",
                        ):
                            wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)
