"""How what happens around an update grows: before the first one, and after the last, to 8 times its base.

python benchmarks/growth_around.py [--sweeps demos cameras ...] [--rounds 3] [--folder /tmp/growth]

Made-up demonstrations and episodes; of a sweep one thing is changed at a time. Every number is the median of `rounds`
fresh processes, for the library remembers within one what it has read, and counts from when its modules are imported.
`workers` runs Lift's simulators (robosuite) with actions that cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from elsewhere import output_of
from encoder import status_mib

from prism_policy.config import config_json, presets
from prism_policy.config.settings import RunConfig, TaskConfig, single_tasks
from prism_policy.data.schema import task_schema
from prism_policy.data.source import open_source
from prism_policy.data.windows import batch_indices
from prism_policy.demos.dataset import fit_to_dataset, open_dataset
from prism_policy.demos.inspect import print_demos
from prism_policy.doctor.dataset import examine
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import Request, WorkerPool
from prism_policy.evaluation.compare import compare
from prism_policy.evaluation.results import EpisodeSet, summarise_run
from prism_policy.evaluation.rollouts import evaluate
from prism_policy.policies import Policy
from prism_policy.probe.encoder_cost import device_name
from prism_policy.reports.report import write_report
from prism_policy.run_folder import make_policy
from prism_policy.training.trainer import fit_normalizers
from prism_policy.utils.files import write_text

STEPS = 100
"""Of a demonstration."""
BASE: dict[str, int] = {"demos": 25, "cameras": 2, "pixels": 84, "tasks": 1}
SWEEPS: dict[str, tuple[int, ...]] = {
    "demos": (200, 400, 800, 1600),
    "cameras": (1, 2, 4, 8),
    "pixels": (84, 120, 168, 240),
    "tasks": (1, 2, 4, 8),
    "episodes": (50, 100, 200, 400),
    "workers": (1, 2, 4, 8),
}
STATE = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


def point_of(sweep: str, value: int) -> dict[str, int]:
    """What is made for a value of a sweep; images are small where only their number is of interest."""
    small = {"pixels": 32} if sweep in ("demos", "tasks") else {}
    return {**BASE, **small, **({"cameras": 1} if sweep == "demos" else {}), sweep: value}


def cameras_of(point: dict[str, int]) -> tuple[str, ...]:
    """Names of the cameras."""
    return ("agentview", "robot0_eye_in_hand", *(f"camera{i}" for i in range(2, 8)))[: point["cameras"]]


def config_of(point: dict[str, int], folder: Path) -> RunConfig:
    """A run on the demonstrations in `folder`."""
    config = presets.nano("libero_spatial", encoder_name="sspool")
    render = replace(config.task.render, resolution=point["pixels"])
    numbers = tuple(range(point["tasks"]))
    config = replace(config, task=replace(config.task, cameras=cameras_of(point), render=render, numbers=numbers))
    encoder = replace(config.policy.encoder, stages=(2,))  # deeper ones have no room for keypoints at 32 px
    return replace(config, dataset=str(folder), policy=replace(config.policy, encoder=encoder))


def write_demos(point: dict[str, int], folder: Path) -> None:
    """A file of made-up demonstrations for each task."""
    rng, size = np.random.default_rng(0), point["pixels"]
    for task in single_tasks(config_of(point, folder).task):
        kwargs = {"robots": ["Panda"], "bddl_file_name": f"{task.spec.suite}/{task.spec.env_name}.bddl"}
        about = {"env_name": "Libero_Tabletop_Manipulation", "env_version": "1.5.2", "env_kwargs": kwargs}
        with h5py.File(folder / f"{task.spec.env_name}_demo.hdf5", "w", libver="latest") as file:
            for i in range(point["demos"]):
                demo = file.create_group(f"data/demo_{i}")
                demo["actions"] = np.cumsum(rng.uniform(-0.02, 0.02, (STEPS, 7)), 0)
                demo["states"] = rng.normal(size=(STEPS, 32))
                for key, width in STATE.items():
                    demo[f"obs/{key}"] = np.cumsum(rng.normal(0, 0.01, (STEPS, width)), 0)
                for camera in cameras_of(point):
                    demo[f"obs/{camera}_image"] = rng.integers(0, 256, (STEPS, size, size, 3), np.uint8)
                demo.attrs["num_samples"] = STEPS
            names = [f"demo_{i}" for i in range(point["demos"])]
            file["data"].attrs["env_args"] = json.dumps(about)
            file["mask/train"], file["mask/valid"] = (np.array(x, "S") for x in (names[1:], names[:1]))


class Clock:
    """Seconds by the name of what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time."""
        started = time.perf_counter()
        with redirect_stdout(StringIO()):
            yield
        self.seconds[name] = time.perf_counter() - started


def time_info(point: dict[str, int], folder: Path, clock: Clock) -> None:
    """`prism info` on each file, without a replay."""
    with clock("info"):
        for file in sorted(folder.glob("*.hdf5")):
            print_demos(file, replay=0, as_json=True)


def time_doctor(point: dict[str, int], folder: Path, clock: Clock) -> None:
    """`prism doctor`'s look at all demonstrations."""
    with clock("doctor"):
        examine(open_source(folder))


def time_unpacking(point: dict[str, int], folder: Path, clock: Clock) -> None:
    """The frame cache, made."""
    with clock("first opening"):
        open_dataset(config_of(point, folder))


def time_opening(point: dict[str, int], folder: Path, clock: Clock) -> None:
    """Everything before the first update, with the frame cache there."""
    config = config_of(point, folder)
    with clock("facts"):
        fit_to_dataset(config)
    with clock("opening"):
        dataset = open_dataset(config)
    windows = dataset.train
    policy = make_policy(config, dataset.schema)
    with clock("normaliser"):
        fit_normalizers(policy, windows)
    groups = windows.groups("task")
    with clock("first batch"):
        windows.batch(batch_indices(0, 64, groups, 0))
    with clock("later batch"):
        windows.batch(batch_indices(1, 64, groups, 0))


def run_folders(folder: Path) -> tuple[RunConfig, Policy, list[Path]]:
    """Settings, an untrained policy and the folders of two made-up runs."""
    config = presets.smoke(presets.nano("lift"))
    torch.manual_seed(0)
    return config, make_policy(config, task_schema(config.task)).eval(), [folder / name for name in "ab"]


def write_episodes(point: dict[str, int], folder: Path) -> None:
    """Two runs with so many episodes of the same starts."""
    config, policy, runs = run_folders(folder)
    count, rng = point["episodes"], np.random.default_rng(0)
    for run in runs:
        episodes = EpisodeSet.of(run, "last", "evaluate", 0, config.task)
        episodes.folder.mkdir(parents=True)
        write_text(run / "config.json", config_json.to_json(config))
        text = config_json.to_json(replace(config, policy=policy.config))
        about = {"split": "evaluate", "seed": 0, "weights": policy.fingerprint()}
        about |= {key: json.loads(text)[key] for key in ("task", "policy")}
        write_text(episodes.folder / "settings.json", json.dumps(about))
        (episodes.folder / "states").mkdir()
        lines = []
        for i in range(count):
            states = np.random.default_rng(i).normal(size=(60, 45))
            np.save(episodes.states(i), states)
            lines.append({"episode": i, "success": bool(rng.random() < 0.7), "steps": 60, "stage": "lifted"})
        write_text(episodes.folder / "episodes.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def time_episodes(point: dict[str, int], folder: Path, clock: Clock) -> None:
    """What `prism evaluate` does besides playing when it is run again, and `prism compare`."""
    config, policy, runs = run_folders(folder)
    settings = replace(config.evaluate, n_episodes=point["episodes"], split="evaluate", seed=0)
    from scipy.stats import binomtest

    binomtest(1, 2)  # imported; it is no part of the growth
    with clock("going on"):
        evaluate(EpisodeSet.of(runs[0], "last", "evaluate", 0, config.task).folder, config, policy, settings)
    with clock("summary"):
        summary = summarise_run(runs[0], "evaluate", "last", [])
    write_text(runs[0] / "results" / "summary.json", json.dumps(summary))
    with clock("report"):
        write_report(runs[0])
    with clock("compare"):
        compare(runs[0], runs[1], ("last", "last"), "evaluate")


def free_actions(requests: Sequence[Request]) -> list[np.ndarray]:
    """Actions that cost nothing."""
    return [np.random.default_rng(r.episode).uniform(-0.3, 0.3, (8, 7)) for r in requests]


def memory_of_worker(task: TaskConfig) -> tuple[int, float]:
    """Which process this is, and MiB of it: pages that several share count by their part."""
    kept_env(task, render_images=True)
    time.sleep(0.5)  # so that every worker gets a job
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return os.getpid(), next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def time_workers(point: dict[str, int], folder: Path, clock: Clock) -> None:
    """Start of so many simulators, episodes a second and memory."""
    task = replace(presets.nano("lift").task, max_steps=48)
    with WorkerPool(point["workers"]) as pool:
        play: Callable[..., Any] = pool.rollouts
        episodes = range(max(8, 2 * point["workers"]))
        common = {"split": "evaluate", "seed": 0, "n_obs_steps": 2}
        with clock("start, and an episode each"):
            play(task, range(point["workers"]), free_actions, lambda _: None, **common)
        with clock("episodes"):
            play(task, episodes, free_actions, lambda _: None, **common)
        clock.seconds["an episode"] = clock.seconds.pop("episodes") / len(episodes)
        found = dict(f.result() for f in [pool.submit(memory_of_worker, task) for _ in range(3 * point["workers"])])
        clock.seconds["MiB a worker"] = statistics.mean(found.values())


Stage = Callable[[dict[str, int], Path, Clock], None]
OF_DATA: tuple[Stage, ...] = (time_info, time_doctor, time_unpacking, time_opening)
STAGES: dict[str, tuple[Callable[..., None] | None, tuple[Stage, ...]]] = {
    **dict.fromkeys(("demos", "cameras", "pixels", "tasks"), (write_demos, OF_DATA)),
    "episodes": (write_episodes, (time_episodes,)),
    "workers": (None, (time_workers,)),
}
"""What is written for a sweep, and what is timed."""


def child(arguments: argparse.Namespace) -> None:
    """One stage, or the writing (-1), in this process; prints JSON."""
    point, folder, clock = json.loads(arguments.point), arguments.folder, Clock()
    write, stages = STAGES[arguments.sweeps[0]]
    if arguments.stage < 0:
        assert write
        write(point, folder)
    else:
        stages[arguments.stage](point, folder, clock)
        clock.seconds["peak MiB"] = status_mib("VmHWM")
    print(json.dumps(clock.seconds))


def measured(sweep: str, value: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Medians over the rounds, by what was timed; the peak is the highest of the stages."""
    folder = arguments.folder / sweep
    shutil.rmtree(folder, ignore_errors=True)
    point = point_of(sweep, value)

    def run(stage: int) -> dict[str, float]:
        command = [sys.executable, __file__, "--sweeps", sweep, "--point", json.dumps(point), "--stage", str(stage)]
        surroundings = {**os.environ, "PRISM_CACHE": str(folder / "cache")}
        output = output_of([*command, "--folder", str(folder / "data")], env=surroundings, cwd=folder)
        return dict(json.loads(output.splitlines()[-1]))

    (folder / "data").mkdir(parents=True)
    if STAGES[sweep][0]:
        run(-1)
    rows: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for stage in range(len(STAGES[sweep][1])):
            for name, seconds in run(stage).items():
                rows.setdefault(name, []).append(seconds)
    shutil.rmtree(folder)
    return {name: max(x) if name == "peak MiB" else statistics.median(x) for name, x in rows.items()}


def cell(name: str, value: float, first: float) -> str:
    """A number of the table, with how many times the first it is."""
    text = f"{value:.0f}" if "MiB" in name else f"{1000 * value:.0f}"
    return f"{text} ({value / first:.1f})"


def main() -> None:
    """Print a table a sweep, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=SWEEPS)
    parser.add_argument("--values", nargs="+", type=int, help="of the one sweep, instead of its own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/growth"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.absolute()
    torch.set_num_threads(1)
    if arguments.point:
        child(arguments)
        return
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, load {load}; [ms] (times the first).\n")
    for sweep in arguments.sweeps:
        first: dict[str, float] = {}
        for value in arguments.values or SWEEPS[sweep]:
            found = measured(sweep, value, arguments)
            if not first:
                first = found
                print(f"| {sweep} | " + " | ".join(found) + " |")
                print("|---" * (len(found) + 1) + "|")
            print(f"| {value} | " + " | ".join(cell(n, x, first[n]) for n, x in found.items()) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
