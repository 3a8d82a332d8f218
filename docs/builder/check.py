"""`make docs-check`: are the documentation's commands and snippets true? All are parsed, those that can be are run.

python docs/builder/check.py [PAGE ...]     some pages; `snippets.py` says how a page marks its blocks

Each page has a folder of its own in build/docs-check, with the demonstrations and runs that it asks for: a few
demonstrations of Lift at 84 px, and networks trained for ten updates.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from parse import PAGES, ROOT, complaints
from snippets import Block, blocks, needed

WORK = ROOT / "build" / "docs-check"
LIMIT_S = 900
TAIL = 25
"""Lines of the output of what failed."""
PRISM = """#!{python}
import json, os, signal, subprocess, sys
name, *words = sys.argv[1:] or [""]
flags = json.loads(os.environ.get("DOCS_CHECK_ADDED", "{{}}")).get(name, [])
command = [{python!r}, "-m", "prism_policy", name, *words, *flags]
if name != "serve":
    code = subprocess.call(command)
    sys.exit(0 if name == "doctor" and code == 1 else code)  # networks that know nothing have faults
with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
    for line in server.stdout:
        print(line, end="")
        if "Ctrl-C stops it" in line:
            server.send_signal(signal.SIGINT)
    code = server.wait()
sys.exit(0 if code in (0, 130) else code)
"""
"""`prism` within a block: in its cheap form; a server is stopped once it serves, doctor may find faults."""
NOTHING = "#!/bin/sh\necho not run: everything is installed\n"
"""`pip`, `uv`, `git` and `make` within a block; `parse.py` looks at what they name."""
SMALL = (
    "--demos.num-demos 4 "
    "--train.steps 10 --train.batch-size 8 --train.warmup-steps 2 --train.keep-every 1 --train.rollout-every 10 "
    "--train.rollout-episodes 1 --policy.encoder.width 16 --policy.down-dims 16 32 --task.max-steps 24"
)
TRAINED = "prism train --dataset demos.hdf5 --encoder {0} --out {0} {1} && prism evaluate {0} --n-episodes 2"
FIXTURES = {
    "demos.hdf5": "prism collect --num-demos 4 --out states.hdf5 && prism render states.hdf5 --out demos.hdf5",
    "sspool": TRAINED.format("sspool", SMALL),
    "avgpool": TRAINED.format("avgpool", SMALL),
}


def environment(cheap: dict[str, list[str]]) -> dict[str, str]:
    """Of a block: a cache of its own, one thread, and a `prism` that adds the flags of the cheap form."""
    added = {name: " ".join(flags).replace("small", SMALL).split() for name, flags in cheap.items()}
    tools = WORK / "bin"
    if not tools.exists():
        tools.mkdir(parents=True)
        (tools / "prism").write_text(PRISM.format(python=sys.executable))
        for name in ("pip", "uv", "git", "make"):
            (tools / name).write_text(NOTHING)
        for tool in tools.iterdir():
            tool.chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    sources = [ROOT / "src", *ROOT.glob("packages/*/src")]
    source = os.pathsep.join(filter(None, [*map(str, sources), os.environ.get("PYTHONPATH", "")]))
    own = {"PATH": path, "PYTHONPATH": source, "PRISM_CACHE": str(WORK / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "DOCS_CHECK_ADDED": json.dumps(added), "COLUMNS": "100"}


def run(command: list[str], folder: Path, added: dict[str, list[str]]) -> str:
    """Run a command; returns the end of what it printed where it failed, "" where it did not."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(added), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"still running after {LIMIT_S} s"
    if done.returncode == 0:
        return ""
    return "\n".join([f"exit code {done.returncode}", *done.stdout.splitlines()[-TAIL:]])


def fixture(name: str) -> Path:
    """A file or folder that pages use, made once."""
    folder = WORK / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".made" / name).exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
        print(f"making {name} for the pages that use it", flush=True)
        if failed := run(["bash", "-euo", "pipefail", "-c", FIXTURES[name]], folder, {}):
            raise SystemExit(f"cannot make {name}, which pages use: {failed}")
        (folder / ".made").mkdir(exist_ok=True)
        (folder / ".made" / name).touch()
    return folder / name


def provide(page: Path) -> Path:
    """Return a fresh folder of a page, with what it uses in it."""
    folder = WORK / page.relative_to(ROOT).with_suffix("").as_posix().replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in needed(page):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        demos = fixture("demos.hdf5")
        if name.endswith(".hdf5"):
            shutil.copy(demos, target)
        else:
            shutil.copytree(fixture("avgpool" if "avgpool" in name else "sspool"), target)
    return folder


def try_block(block: Block, folder: Path) -> str:
    """Run a block; "" where it worked."""
    if block.language == "python":
        return run([sys.executable, "-c", f"{block.before}\n{block.code}"], folder, block.added)
    lines = [line for line in block.commands.splitlines() if not line.startswith(tuple(block.skipped))]
    script = "\n".join([block.before, *lines])
    return run(["bash", "-euo", "pipefail", "-c", script], folder, block.added)


def outcome(block: Block, folder: Path) -> tuple[str, str]:
    """What became of a block, and what there is to say about it."""
    if block.mode.startswith("file "):
        target = folder / block.mode.removeprefix("file ")
        target.write_text(block.code)
        return "file", target.name
    if block.mode == "not run":
        return "not run", block.reason
    if block.mode == "run":
        failed = try_block(block, folder)
        return ("FAILED", failed) if failed else ("ran", "")
    if block.language == "python":
        try:
            ast.parse(block.code)
        except SyntaxError as error:
            return "FAILED", str(error)
        return "parsed", "its names are looked up by a test"
    return ("parsed", "") if block.commands.strip() else ("", "")


def main(pages: list[Path]) -> int:
    """Check pages; returns the exit code."""
    counted: Counter[str] = Counter()
    for page in pages:
        for text in complaints(page):
            print(f"FAILED   {text}", flush=True)
            counted["FAILED"] += 1
        folder: Path | None = None
        for block in blocks(page):
            if folder is None and block.mode in ("run", *[block.mode] * block.mode.startswith("file ")):
                folder = provide(page)
            started = time.monotonic()
            what, about = outcome(block, folder or WORK)
            for start, reason in block.skipped.items():
                counted["not run"] += 1
                print(f"not run  {block.where} {start} ...: {reason}", flush=True)
            if what:
                counted[what] += 1
                print(f"{what:8} {block.where} ({time.monotonic() - started:.0f} s) {about}", flush=True)
    print(", ".join(f"{number} {what}" for what, number in counted.items()))
    return 1 if counted["FAILED"] else 0


if __name__ == "__main__":
    chosen = [Path(argument).resolve() for argument in sys.argv[1:]]
    sys.exit(main(chosen or PAGES))
