"""Time to success: from demonstrations to 90% of 50 episodes of Lift, ours against what one would pick instead.

python benchmarks/time_to_success.py OUT --lerobot PYTHON [--seed 0] [--limit 5] [--only WORDS ...]

The same 200 demonstrations for all, their frames drawn before: robomimic's HDF5 for this library and the plain loops, a
LeRobot dataset for LeRobot (PYTHON is the one that `make test-lerobot` makes). One after another, alone:

- ours: `prism train --dataset` with the preset nano;
- LeRobot's diffusion policy and ACT as `lerobot-train` comes, but for weights from the hub; and its diffusion policy
  with nano's U-Net, chunk, batch and rate, as someone would cut it down who has no GPU either;
- plain: DDPM with spatial softmax, of the paper's sizes and of nano's, in a loop as one writes it down: windows through
  PyTorch's DataLoader, float32 NCHW, AdamW, an average of the weights, 64 windows an update.

The clock is that of the whole command: imports, reading, training, saving. Ours runs to its end. Each other gets LIMIT
times as long, an eighth more where its first updates promise too few, and a schedule that ends there; of LeRobot's ways
to read data the faster of two, tried for a few updates before. It is measured at its end and at four points before, in
the episodes of `prism evaluate` at the same seed, which take no time on this clock. Six failures end a measurement, as
45 of 50 are then out of reach. DDPM acts by ten steps of DDIM.

OUT/results.json grows with each; the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from elsewhere import output_of
from torch.utils.data import DataLoader, Dataset
from training_step import PlainPolicy

from prism_policy.config import presets
from prism_policy.config.settings import DDPMConfig, RunConfig
from prism_policy.data.windows import Windows
from prism_policy.demos.dataset import open_dataset
from prism_policy.envs.process import how_it_ended
from prism_policy.evaluation.statistics import wilson_interval
from prism_policy.probe.encoder_cost import device_name
from prism_policy.run_folder import make_policy, open_run, save_normalizer, save_weights
from prism_policy.training.trainer import fit_normalizers

EPISODES, ENOUGH, POINTS = 50, 45, 5
MARGIN = 1.125
"""First updates are slower than those after; who is to have LIMIT times as long must not end before."""
PRISM = (sys.executable, "-m", "prism_policy")
OURS = "ours, `prism train`"
PLAIN = {"plain, the paper's sizes": "paper", "plain, nano's sizes": "nano"}
_DIFFUSION = ("--policy.type=diffusion", "--policy.pretrained_backbone_weights=null")
LEROBOT = {
    "LeRobot's diffusion policy": _DIFFUSION,
    "LeRobot's ACT": ("--policy.type=act", "--policy.pretrained_backbone_weights=null"),
    "LeRobot's diffusion policy, cut down": (
        *_DIFFUSION, "--policy.down_dims=[64,128,256]", "--policy.diffusion_step_embed_dim=64", "--policy.horizon=16",
        "--policy.n_action_steps=8", "--policy.crop_shape=[76,76]", "--policy.use_group_norm=true",
        "--policy.optimizer_lr=1e-3", "--policy.scheduler_warmup_steps=50", "--batch_size=64",
    ),
}  # fmt: skip
DDIM = ("--policy.noise_scheduler_type=DDIM", "--policy.num_inference_steps=10")
WAYS_TO_READ = (("2", "4"), ("1", "1"))
"""OMP_NUM_THREADS and LeRobot's --num_workers: what it comes with, and a core for each of reading and training."""

Point = tuple[float, str]
"""Seconds on the clock, and where what was trained so far lies."""


class FloatWindows(Dataset[dict[str, Any]]):
    """A window at a time, its frames float32 (2, 3, H, W) in 0 to 1."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        window: dict[str, Any] = self.windows.batch(torch.tensor([index]))
        images = {c: x[0].permute(0, 3, 1, 2).float() / 255 for c, x in window["images"].items()}
        return {"images": images, "state": window["state"][0], "actions": window["actions"][0]}


def plain_config(sizes: str, dataset: Path, seed: int) -> RunConfig:
    """What `prism evaluate` has to know of a plain run."""
    config = (presets.paper if sizes == "paper" else presets.nano)("lift", "ddpm", "sspool", seed)
    policy = replace(config.policy, ddpm=DDPMConfig(sampler="ddim", num_inference_steps=10))
    train = replace(config.train, precision="float32", compile=False)
    return replace(config, task=presets.nano("lift").task, policy=policy, train=train, dataset=str(dataset))


def train_plainly(sizes: str, dataset: Path, out: Path, seed: int, limit_s: float, began: float) -> None:
    """The loop as one writes it down; run folders OUT/1 to OUT/5 at five points of its schedule."""
    config = plain_config(sizes, dataset, seed)
    windows = open_dataset(config).train
    acting = make_policy(config, windows.frames.schema)
    fit_normalizers(acting, windows)
    policy = PlainPolicy(config.policy).train()
    rate, warm_up = (1e-4, 500) if sizes == "paper" else (1e-3, 50)
    optimizer = torch.optim.AdamW(policy.parameters(), rate)
    ema = {name: p.detach().clone() for name, p in policy.named_parameters()}
    loader = DataLoader(FloatWindows(windows), batch_size=64, shuffle=True, num_workers=2, drop_last=True)
    batches = itertools.chain.from_iterable(iter(lambda: loader, None))
    timed, steps, at = list[float](), 10**9, list[int]()
    for update in itertools.count():
        started = time.time()
        if len(timed) == 5:  # as many as there is time for
            steps = max(int((began + MARGIN * limit_s - started) / (sum(timed[1:]) / 4)), 5 * POINTS)
            at = [round(steps * (i + 1) / POINTS) for i in range(POINTS)]
        if update in at:
            with torch.no_grad():
                # The same layers in the same order, the encoder's first.
                for parameter, average in zip(acting.parameters(), ema.values(), strict=True):
                    parameter.copy_(average)
            folder = out / str(at.index(update) + 1)
            open_run(folder, config)
            save_normalizer(folder, acting, config.task)
            weights = {n: x for n, x in acting.state_dict().items() if not n.startswith("normalizer.")}
            save_weights(folder, weights)
        if update >= steps:
            return
        progress = max(update - warm_up, 0) / max(steps - warm_up, 1)
        optimizer.param_groups[0]["lr"] = rate * min((update + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * progress)))
        batch = next(batches)
        with torch.no_grad():
            state = acting.normalizer["state"](batch["state"])
            actions = acting.normalizer["action"](batch["actions"])
        loss = policy(batch["images"], state, actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(1 - (1 + update) ** -0.75, 0.9999)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                ema[name].mul_(decay).add_(parameter, alpha=1 - decay)
        timed.append(time.time() - started)


def plain(sizes: str, arguments: argparse.Namespace, limit_s: float) -> list[Point]:
    """Train a plain loop in a process of its own."""
    out, began = arguments.out / f"plain-{sizes}", time.time()
    parts = (sizes, arguments.out / "lift.hdf5", out, arguments.seed, limit_s, began)
    process = multiprocessing.get_context("spawn").Process(target=train_plainly, args=parts)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the plain loop {how_it_ended(process.exitcode)} (its own words stand above)")
    folders = [out / str(i + 1) for i in range(POINTS)]
    return [((folder / "weights.safetensors").stat().st_mtime - began, str(folder)) for folder in folders]


def ours(arguments: argparse.Namespace) -> list[Point]:
    """Train as the preset has it."""
    out, began = arguments.out / "ours", time.time()
    data = ("--dataset", str(arguments.out / "lift.hdf5"), "--train.rollout-every", "0")
    output_of([*PRISM, "train", *data, "--seed", str(arguments.seed), "--out", str(out)], env=own_cache(arguments))
    return [(time.time() - began, str(out))]


def own_cache(arguments: argparse.Namespace) -> dict[str, str]:
    """The environment with an empty cache, so that frames are unpacked on the clock."""
    return os.environ | {"PRISM_CACHE": str(arguments.out / "cache")}


def lerobot(name: str, arguments: argparse.Namespace, limit_s: float) -> list[Point]:
    """Train by `lerobot-train`, with a schedule that ends at the limit."""
    programme = [str(arguments.lerobot.parent / "lerobot-train"), *LEROBOT[name], "--policy.device=cpu"]
    programme += ["--policy.push_to_hub=false", "--wandb.enable=false", "--dataset.repo_id=local/lift"]
    programme += [f"--dataset.root={arguments.out / 'lift_lerobot'}", f"--seed={arguments.seed}"]

    def train(threads: str, workers: str, out: Path, *more: str) -> tuple[str, float]:
        began = time.time()
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
        command = [*programme, f"--num_workers={workers}", f"--output_dir={out}", *more]
        return output_of(command, env=environment, stderr=subprocess.STDOUT), began

    costs = list[tuple[float, float, tuple[str, str]]]()
    for ways in WAYS_TO_READ:
        folder = arguments.out / f"{slug(name)}-tried-{ways[1]}"
        text, began = train(*ways, folder, "--steps=12", "--log_freq=4", "--save_checkpoint=false")
        elapsed = time.time() - began
        update_s = sum(float(x) for x in re.findall(r"(?:updt_s|data_s):([\d.]+)", text)[-2:])
        costs.append((update_s, elapsed - 12 * update_s, ways))
    update_s, start_s, ways = min(costs)
    steps = max(int((MARGIN * limit_s - max(start_s, 0)) / update_s), POINTS)
    out = arguments.out / slug(name)
    _, began = train(*ways, out, f"--steps={steps}", f"--save_freq={math.ceil(steps / POINTS)}", "--log_freq=20")
    kept = sorted(path for path in (out / "checkpoints").iterdir() if path.name.isdecimal())
    print(f"{name}: {steps} updates, {ways[0]} threads and {ways[1]} workers to read")
    return [((path / "training_state").stat().st_mtime - began, str(path / "pretrained_model")) for path in kept]


def slug(name: str) -> str:
    """As a folder."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def successes(place: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """Successes and episodes; fewer than `EPISODES` where too many failed already."""
    done = won = 0
    for number in (6, 12, 25, EPISODES):
        won, done = measured(place, number, arguments), number
        if done - won > EPISODES - ENOUGH:
            break
    return won, done


def measured(place: str, number: int, arguments: argparse.Namespace) -> int:
    """Successes in the first so many episodes."""
    if (Path(place) / "train_config.json").exists():
        command = [str(arguments.lerobot.parent / "lerobot-eval"), f"--policy.path={place}", "--policy.device=cpu"]
        command += ["--env.type=prism", "--env.task=lift", f"--eval.n_episodes={number}", "--eval.batch_size=1"]
        out = arguments.out / "lerobot-eval"
        command += [f"--seed={arguments.seed}", f"--output_dir={out}", *(DDIM if "diffusion" in place else ())]
        output_of(command, env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"})
        overall = json.loads((out / "eval_info.json").read_text())["overall"]
        assert overall["n_episodes"] == number, overall
        return round(overall["pc_success"] * number / 100)
    run = ["evaluate", place, "--seeds", str(arguments.seed), "--n-episodes", str(number), "--video-every", "0"]
    output_of([*PRISM, *run])
    return int(json.loads((Path(place) / "results" / "summary.json").read_text())["n_success"])


def prepare(arguments: argparse.Namespace) -> None:
    """The demonstrations in both formats."""
    file, folder = arguments.out / "lift.hdf5", arguments.out / "lift_lerobot"
    if not file.exists():
        states = arguments.out / "states.hdf5"
        output_of([*PRISM, "collect", "--task", "lift", "--seed", str(arguments.seed), "--out", str(states)])
        output_of([*PRISM, "render", str(states), "--out", str(file)])
    if not folder.exists():
        output_of([*PRISM, "export", str(file), "--format", "lerobot", "--out", str(folder)])


def main() -> None:
    """Train, measure, print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--lerobot", type=Path, required=True, help="LeRobot's Python, for example .venv-lerobot/bin/python"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=5.0)
    parser.add_argument("--only", nargs="+", default=[""], help="words in the names of those to run")
    arguments = parser.parse_args()
    arguments.out, arguments.lerobot = arguments.out.absolute(), arguments.lerobot.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    prepare(arguments)
    path = arguments.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    variants: dict[str, Callable[[float], list[Point]]] = {OURS: lambda _: ours(arguments)}
    variants |= {name: lambda limit_s, n=name: lerobot(n, arguments, limit_s) for name in LEROBOT}
    variants |= {name: lambda limit_s, s=sizes: plain(s, arguments, limit_s) for name, sizes in PLAIN.items()}
    for name, train in variants.items():
        if name in results or not any(word in name for word in arguments.only):
            continue
        if name != OURS and OURS not in results:
            sys.exit("the others get a multiple of our time: run ours first, or add it to --only")
        points = train(arguments.limit * results[OURS]["points"][0]["s"] if results else math.inf)
        found = list[dict[str, Any]]()
        for seconds, place in reversed(points):
            won, number = successes(place, arguments)
            found.insert(0, {"s": seconds, "successes": won, "episodes": number})
            if won < ENOUGH:
                break
        results[name] = {"points": found}
        path.write_text(json.dumps(results, indent=1))
    table(results)


def table(results: dict[str, Any]) -> None:
    """In Markdown."""
    first = results[OURS]["points"][0]["s"]
    print(f"\n{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| training | 90% of 50 episodes after [s] | x ours | measured: successes of episodes after seconds |")
    print("|---|---|---|---|")
    for name, result in results.items():
        points = result["points"]
        reached = [point["s"] for point in points if point["successes"] >= ENOUGH]
        when = f"{reached[0]:.0f}" if reached else f"not in {points[-1]['s']:.0f}"
        times = f"{reached[0] / first:.1f}" if reached else f"> {points[-1]['s'] / first:.1f}"
        told = []
        for point in points:
            low, high = wilson_interval(point["successes"], point["episodes"])
            told.append(f"{point['successes']} of {point['episodes']} ({low:.0%} to {high:.0%}) {point['s']:.0f} s")
        print(f"| {name} | {when} | {times} | {'; '.join(told)} |")


if __name__ == "__main__":
    main()
