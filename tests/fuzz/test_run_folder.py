"""Damaged run folders: all that is read from them ends in an answer or one sentence, and nothing is changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import prism_policy as pp
from fuzz.harness import cases, clean, digest, flipped
from prism_policy.config.config_json import to_json
from prism_policy.data.schema import task_schema
from prism_policy.evaluation.compare import compare
from prism_policy.evaluation.results import EpisodeSet, episode_sets, summarise_run
from prism_policy.reports.evaluate import Timings
from prism_policy.reports.report import write_report
from prism_policy.run_folder import (
    is_trained,
    make_policy,
    open_run,
    read_metrics,
    read_run,
    save_normalizer,
    save_weights,
)
from prism_policy.training.checkpoint import Checkpoints, TrainState
from small_run import small_config

CONFIG = small_config("--policy.down-dims 8 16", "--policy.encoder.width 4", "--policy.encoder.stages 1")
ODD = (
    None,
    True,
    -1,
    0,
    2**70,
    10**400,
    1e308,
    -0.5,
    float("nan"),
    "x" * 1000,
    "\n",
    [],
    [[]],
    {},
    {"a": 1},
    [1] * 200,
)


def odd(rng: np.random.Generator) -> object:
    return ODD[rng.integers(len(ODD))]


def spoil(rng: np.random.Generator, value: object) -> object:
    """The value with one leaf, or one branch, made something else, left out, or nested deeper."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        else:
            changed[key if rng.random() < 0.9 else "un\nknown" * 50] = spoil(rng, value[key])
        return changed
    return odd(rng)


def damaged(rng: np.random.Generator, text: bytes) -> bytes:
    """JSON that is other JSON, or bytes that are none."""
    kind = rng.integers(4)
    if kind == 0:
        return flipped(rng, text)
    if kind == 1:
        return b'{"a":' * 5000 if rng.random() < 0.5 else b"[" * 100_000
    lines = text.splitlines()
    place = rng.integers(len(lines))
    try:
        if len(lines) > 1 and not text.startswith(b"{\n"):
            lines[place] = json.dumps(spoil(rng, json.loads(lines[place]))).encode()
            return b"\n".join(lines) + b"\n"
        return json.dumps(spoil(rng, json.loads(text))).encode()
    except ValueError:  # of more digits than Python writes
        return b"1" * 10_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated run, made without a simulator."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    open_run(folder, CONFIG)
    policy = make_policy(CONFIG, task_schema(CONFIG.task))
    save_normalizer(folder, policy, CONFIG.task)
    state = TrainState(policy, CONFIG.train)
    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    with Checkpoints(folder) as checkpoints:
        for _ in range(2):
            state.update(1e-3, 0.5)
            checkpoints.save(state)
        checkpoints.save_weights(state, "update_000002")
    save_weights(folder, state.weights())
    line = {"lr": 1e-3, "samples_per_s": 9.0, "waiting": 0.0, "wall_s": 1.0}
    rows = [{"step": i, "loss": 1 / i, **line} for i in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    episodes = EpisodeSet(folder, "last", "evaluate", 0)
    (episodes.folder / "states").mkdir(parents=True)
    (episodes.folder / "settings.json").write_text(json.dumps({"task": {"name": "lift", "max_steps": 400}}))
    with (episodes.folder / "episodes.jsonl").open("w") as file:
        for i in range(4):
            file.write(json.dumps({"episode": i, "success": i % 2 == 0, "steps": 40, "stage": ""}) + "\n")
            np.save(episodes.states(i), np.ones((3, 4)))
    (folder / "results" / "summary.json").write_text(json.dumps(summarise_run(folder, "evaluate", "last", [])))
    timings = {"wall_s": {"train": 3.0, "report": 1.0}, "peak_rss_mib": 1.0, "worker_peak_rss_mib": 0.0}
    (folder / "results" / "timings.json").write_text(json.dumps(timings))
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_configs(copy: Path) -> None:
    path = copy / "config.json"
    sound = to_json(CONFIG).encode()
    for case, rng in cases("configs", 0.1):
        path.write_bytes(damaged(rng, sound))
        before = digest(copy)
        for action in (lambda: read_run(copy), lambda: pp.load_policy(copy), lambda: open_run(copy, CONFIG)):
            clean(case, action)
        assert digest(copy) == before, case


def test_tensors(copy: Path) -> None:
    """Where a damaged file is read at all, its numbers are those that were written."""
    weights = pp.load_policy(copy).fingerprint()
    torch.manual_seed(1)
    fresh = TrainState(make_policy(CONFIG, task_schema(CONFIG.task)), CONFIG.train)
    resumed = {}
    for case, rng in cases("tensors", 0.1):
        name = ("weights", "normalizer", "checkpoints/last", "checkpoints/update_000002")[rng.integers(4)]
        path = copy / f"{name}.safetensors"
        sound = path.read_bytes()
        start = int(rng.integers(len(sound)))
        block = sound[:start] + b"\xff" * min(4096, len(sound) - start) + sound[start + 4096 :]
        path.write_bytes(block if rng.random() < 0.5 else flipped(rng, sound))
        before = digest(copy)
        checkpoint = "2" if name.endswith("2") else "last"

        def act(checkpoint: str = checkpoint, case: int = case) -> None:
            assert pp.load_policy(copy, checkpoint).fingerprint() == weights, case

        if "last" in name:
            clean(case, lambda: Checkpoints(copy).restore(fresh))
            resumed[fresh.done] = fresh.parameters["net.final.1.bias"].sum().item()
        else:
            clean(case, act)
            clean(case, lambda: is_trained(copy))
        assert digest(copy) == before, case
        path.write_bytes(sound)
    assert resumed.keys() <= {1, 2}  # the checkpoint before it takes its place


def test_journals_and_results(copy: Path, run: Path) -> None:
    other = Path(shutil.copytree(run, copy.parent / "other"))
    names = ("metrics.jsonl", "results/summary.json", "results/timings.json")
    names += tuple(f"results/last/evaluate-s0/{name}" for name in ("episodes.jsonl", "settings.json"))
    names += ("results/last/evaluate-s0/states/episode_002.npy",)
    for case, rng in cases("journals", 0.1):
        path = copy / names[rng.integers(len(names))]
        sound = path.read_bytes()
        path.write_bytes(flipped(rng, sound) if path.suffix == ".npy" else damaged(rng, sound))
        before = digest(copy)
        clean(case, lambda: read_metrics(copy).repaired("left out"))
        clean(case, lambda: summarise_run(copy, "evaluate", "last", []))
        clean(case, lambda: [s.records() for s in episode_sets(copy)])
        clean(case, lambda: Timings(copy / "results" / "timings.json").as_dict())
        clean(case, lambda: compare(copy, other, ("last", "last"), "evaluate", copy.parent / "out.json"))
        assert digest(copy) == before, case
        if rng.random() < 0.3:
            clean(case, lambda: write_report(copy))
        (copy / "report.html").unlink(missing_ok=True)
        path.write_bytes(sound)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "normalizer.safetensors", "metrics.jsonl",
                                  "results/summary.json", "results/last/evaluate-s0/episodes.jsonl",
                                  "checkpoints/last.safetensors"])  # fmt: skip
def test_a_folder_where_a_file_is_expected(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    state = TrainState(make_policy(CONFIG, task_schema(CONFIG.task)), CONFIG.train)
    reading = (
        lambda: pp.load_policy(copy),
        lambda: write_report(copy),
        lambda: is_trained(copy),
        lambda: open_run(copy, CONFIG),
        lambda: Checkpoints(copy).restore(state),
    )
    errors = [clean(0, action) for action in reading]
    assert any(f"{name} is a folder, expected a file" in str(error) for error in errors)


@pytest.mark.parametrize("name", ["checkpoints", "results", "videos", "figures"])
def test_a_file_where_a_folder_is_expected(copy: Path, name: str) -> None:
    shutil.rmtree(copy / name, ignore_errors=True)
    (copy / name).write_text("")
    before = digest(copy)
    for action in (lambda: read_run(copy), lambda: pp.load_policy(copy), lambda: open_run(copy, CONFIG)):
        assert f"{name} is a file, expected a folder" in str(clean(0, action))
    assert digest(copy) == before
