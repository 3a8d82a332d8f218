"""Kills at random moments: what goes on ends as what was never killed, and nothing is left behind.

`make test-all` kills each command once, `make chaos` a hundred times in all (CHAOS_KILLS), at other moments with
another CHAOS_SEED.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from journals import read_lines
from prism_client.client import PolicyClient
from small_run import SETTINGS, split, write_demos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs prism-policy[sim]"),
]

KILLS = int(os.environ.get("CHAOS_KILLS", "7"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
MOST_A_RUN = 5
"""A run is killed up to so many times before it may end."""
PATIENCE = 600.0
"""For anything that is waited for [s]."""
STOPPED = "prism: stopped; the same command goes on from here"
NARROW = split(("--policy.down-dims 16 32", "--policy.step-embed-dim 16", "--policy.encoder.width 16"))


@dataclass(frozen=True)
class Scenario:
    """A command, what it starts from, and what it must come to."""

    share: float  # of the kills
    arguments: Callable[[Path], list[str]]  # of the folder that everything is written into
    prepare: Callable[[Path], None]
    outcome: Callable[[Path], dict[str, Any]]  # what must be equal, to the bit


def command(folder: Path, scenario: Scenario) -> subprocess.Popen[str]:
    """Start it, recognisable by its environment, as its children are."""
    environment = {**os.environ, "PRISM_CACHE": str(folder / "cache"), "CHAOS_FOLDER": str(folder)}
    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "prism_policy", *scenario.arguments(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def printed(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def processes(folder: Path) -> list[psutil.Process]:
    """All processes of a run, orphans too."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("CHAOS_FOLDER") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_no_process(folder: Path) -> None:
    _, alive = psutil.wait_procs(processes(folder), timeout=20)
    assert not [p.cmdline() for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def files_of(folder: Path) -> list[str]:
    """Their names; a digest in the cache's stands for a file's place and time, too."""
    return sorted(
        re.sub(r"-[0-9a-f]{16}", "-*", str(path.relative_to(folder)))
        for path in folder.rglob("*")
        if path.parent.name != "sound"
    )


def finish(folder: Path, scenario: Scenario) -> tuple[float, dict[str, Any]]:
    """Let it come to its end; returns the seconds it took and what it came to."""
    started = time.monotonic()
    process = command(folder, scenario)
    if scenario is SCENARIOS["serve"]:
        outcome = ask(folder, process)
    else:
        assert process.wait(PATIENCE) == 0, printed(folder)
        outcome = scenario.outcome(folder)
    took = time.monotonic() - started
    assert_no_process(folder)
    names = files_of(folder)
    litter = [n for n in names if re.search(r"(\.tmp|\.part|lock)$|/parts?(/|$)", n)]
    assert not litter, litter
    return took, {"files": names, **outcome}


def kill(folder: Path, scenario: Scenario, rng: np.random.Generator, duration: float) -> bool:
    """Kill it once within the time that it usually takes; False where it was over before."""
    process = command(folder, scenario)
    kind = str(rng.choice(["kill", "interrupt", "terminate", "kill a child"], p=[0.6, 0.15, 0.15, 0.1]))
    time.sleep(rng.random() * duration)
    if process.poll() is not None:
        assert process.returncode == 0, printed(folder)
        return False
    children = [p for p in processes(folder) if p.pid != process.pid and "resource_tracker" not in str(p.cmdline())]
    if kind == "kill a child" and children:
        with suppress(psutil.NoSuchProcess):
            children[rng.integers(len(children))].kill()
        if scenario is SCENARIOS["serve"]:
            process.kill()
        code = process.wait(PATIENCE)
        assert code in (0, 2, -signal.SIGKILL), printed(folder)
        if code == 2:
            assert [line.startswith("prism: ") for line in printed(folder).splitlines()].count(True) == 1
    elif kind == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
        if (code := process.wait(PATIENCE)) == 0 and scenario is not SCENARIOS["serve"]:
            return False  # it came to its end before the signal did
        # Before the first line of this package the interpreter does as it likes.
        early = code == -signal.SIGINT or "prism_policy" not in printed(folder).replace(str(folder), "")
        if not (early and STOPPED not in printed(folder)):
            assert code == (0 if scenario is SCENARIOS["serve"] and "Served" in printed(folder) else 130)
            assert "Traceback" not in printed(folder), printed(folder)
    elif kind == "terminate":
        process.terminate()
        assert process.wait(PATIENCE) in (-signal.SIGTERM, 130, 0), printed(folder)
        assert "Traceback" not in printed(folder), printed(folder)
    else:
        process.kill()
        if (code := process.wait(PATIENCE)) == 0:
            return False  # it came to its end before the signal did
        assert code == -signal.SIGKILL
    assert_no_process(folder)
    return True


@cache
def shared(place: Path) -> Path:
    """Demonstrations, a trained run, and drawn demonstrations of an expert: what commands start from."""
    folder = place / "shared"
    folder.mkdir()
    write_demos(folder / "demos.hdf5")
    return folder


def run_once(folder: Path, *arguments: str) -> None:
    """A command that nobody kills."""
    environment = {**os.environ, "PRISM_CACHE": str(folder / "cache")}
    run = [sys.executable, "-m", "prism_policy", *arguments]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def states(place: Path) -> Path:
    path = shared(place) / "states.hdf5"
    run_once(shared(place), "collect", "--num-demos", "4", "--out", str(path))
    return path


@cache
def smoke_cache(place: Path) -> Path:
    """A cache that holds the demonstrations of the smallest size."""
    run_once(shared(place), "quickstart", "--smoke", "--out", str(place / "smoke"), *NARROW)
    return shared(place) / "cache"


@cache
def trained(place: Path) -> Path:
    path = shared(place) / "run"
    run_once(shared(place), *train(shared(place), path, "--task.max-steps 16"))
    return path


def train(inputs: Path, out: Path, *settings: str) -> list[str]:
    few = ("--train.steps 40", "--train.checkpoint-minutes 0.0", "--train.valid-every 10", *settings)
    return ["train", "--dataset", str(inputs / "demos.hdf5"), "--encoder", "sspool", "--out", str(out),
            *split((*SETTINGS, *few))]  # fmt: skip


def demos(folder: Path) -> dict[str, Any]:
    """Everything that the file of demonstrations in the cache holds."""
    (path,) = folder.glob("cache/*/demos.hdf5")
    state = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        state.update(name.encode())
        state.update(repr(sorted((key, str(value)) for key, value in item.attrs.items())).encode())
        if isinstance(item, h5py.Dataset):
            state.update(np.asarray(item[()]).tobytes() if item.dtype.kind != "O" else repr(item[()]).encode())

    with h5py.File(path) as file:
        file.visititems(add)
    return {"demonstrations": state.hexdigest()}


def run_folder(run: Path) -> dict[str, Any]:
    """What a run folder promises to be the same: weights, settings, figures of training, episodes."""
    same: dict[str, Any] = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in ("config.json", "weights.safetensors", "normalizer.safetensors")
    }
    times = {"wall_s", "samples_per_s", "waiting", "gpu_gib", "rss_mib"}
    same["metrics"] = [{k: v for k, v in line.items() if k not in times} for line in read_lines(run / "metrics.jsonl")]
    for path in sorted((run / "results").glob("*/*/episodes.jsonl")):
        same[str(path.relative_to(run))] = sorted(read_lines(path), key=lambda line: line["episode"])
    for path in sorted((run / "results").rglob("*.npy")):
        same[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    if (run / "results" / "summary.json").exists():
        same["n_success"] = json.loads((run / "results" / "summary.json").read_text())["n_success"]
        assert (run / "report.html").read_text().rstrip().endswith("</html>")
    return same


def table(folder: Path) -> dict[str, Any]:
    texts = {name: (folder / "table" / name).read_text() for name in ("table.csv", "table.md")}
    same = {name: text.replace(str(folder), "HERE") for name, text in texts.items()}  # it names the cells' folders
    (cell,) = [path.parent for path in (folder / "cells").glob("*/report.html")]
    return same | run_folder(cell)


def ask(folder: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a server answers to the first question after its start; then it is stopped."""
    deadline = time.monotonic() + PATIENCE
    while not (found := re.search(r"at (ws://\S+)", printed(folder))):
        assert process.poll() is None, printed(folder)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rng = np.random.default_rng(0)
    images = {"agentview": rng.integers(0, 256, (2, 32, 32, 3), np.uint8)}
    with PolicyClient(found[1]) as client:
        actions = client.infer({"images": images, "state": np.zeros((2, 9), np.float32)})["actions"]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0, printed(folder)
    return {"actions": hashlib.sha256(np.asarray(actions).tobytes()).hexdigest(), "log": "Traceback" in printed(folder)}


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def place_of(folder: Path) -> Path:
    return folder.parents[1]


SCENARIOS = {
    "collect": Scenario(
        0.18,
        lambda f: ["collect", "--num-demos", "6", "--workers", "2"],
        lambda f: None,
        lambda f: demos(f),
    ),
    "render": Scenario(
        0.18,
        lambda f: ["render", str(states(place_of(f))), "--workers", "2"],
        lambda f: None,
        lambda f: demos(f),
    ),
    "train": Scenario(
        0.2,
        lambda f: train(shared(place_of(f)), f / "run"),
        lambda f: None,
        lambda f: run_folder(f / "run"),
    ),
    "evaluate": Scenario(
        0.16,
        lambda f: ["evaluate", str(f / "run"), "--n-episodes", "4", "--video-every", "2", "--workers", "2"],
        lambda f: copy(trained(place_of(f)), f / "run"),
        lambda f: run_folder(f / "run"),
    ),
    "quickstart": Scenario(
        0.12,
        lambda f: ["quickstart", "--smoke", "--out", str(f / "run"), *NARROW],
        lambda f: None,
        lambda f: run_folder(f / "run"),
    ),
    "reproduce": Scenario(
        0.08,
        lambda f: [*split(("reproduce table2 --smoke --tasks lift --policies flow_matching --seeds 0 --workers 2",)),
                   "--cells", str(f / "cells"), "--out", str(f / "table")],
        lambda f: copy(smoke_cache(place_of(f)), f / "cache"),
        table,
    ),
    "serve": Scenario(
        0.08,
        lambda f: ["serve", str(trained(place_of(f))), "--port", "0"],
        lambda f: None,
        lambda f: {},
    ),
}  # fmt: skip


def kills_of(name: str) -> int:
    """How many of all kills a command gets: whole numbers that add up; by default one each."""
    if "CHAOS_KILLS" not in os.environ:
        return 1
    names = list(SCENARIOS)
    ends = [round(KILLS * sum(SCENARIOS[n].share for n in names[: i + 1])) for i in range(len(names))]
    place = names.index(name)
    return ends[place] - (ends[place - 1] if place else 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_killed_ends_as_what_was_not(place: Path, name: str) -> None:
    kills, scenario = kills_of(name), SCENARIOS[name]
    if not kills:
        pytest.skip("its kills are those of `make chaos`")
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    run = 0

    def fresh() -> Path:
        nonlocal run
        folder = place / name / f"run{run}"
        folder.mkdir(parents=True)
        scenario.prepare(folder)
        run += 1
        return folder

    duration, whole = finish(fresh(), scenario)
    done = 0
    while done < kills:
        folder = fresh()
        for _ in range(min(kills - done, int(rng.integers(1, MOST_A_RUN + 1)))):
            if not kill(folder, scenario, rng, duration):
                duration *= 0.8  # the machine was busier when it was measured, or it went on from much that was done
                break
            done += 1
        _, resumed = finish(folder, scenario)
        for key in whole:
            assert resumed[key] == whole[key], f"{name}, {done} kills, seed {SEED}: {key} differs"
        shutil.rmtree(folder)
