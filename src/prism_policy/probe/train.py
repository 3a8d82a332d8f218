"""The spatial probe: how well each encoder can tell where things are, in metres and radians, with no policy between.

Each is trained from scratch, with one linear layer on its output, to regress the poses of the objects and the hand in
random still scenes, and measured on other scenes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from prism_policy.config import config_json, presets
from prism_policy.config.ranges import Seed, check_ranges, range_of
from prism_policy.config.settings import Device, EncoderConfig, ProbeConfig, RenderConfig, TaskConfig
from prism_policy.config.typed_json import read_journal
from prism_policy.data.robomimic import demo_names, open_demos
from prism_policy.demos.collect import collect_scenes
from prism_policy.demos.render import render_demos
from prism_policy.envs.episode import Split
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.models.encoder import VisualEncoder
from prism_policy.probe.results import Line, ProbeLine, draw, markdown_table, rows, table
from prism_policy.run_folder import open_folder
from prism_policy.utils.device import pick_device
from prism_policy.utils.files import write_lines, write_text
from prism_policy.utils.memory import keep_freed_memory
from prism_policy.utils.progress import Bar, console

CPU = torch.device("cpu")
Job = tuple[str, int, int]
"""Encoder, resolution and seed."""
Progress = Callable[[str, int, int], None]
"""Called with a title, the units done and their total."""


@dataclass(frozen=True)
class Scenes:
    """N frames and what is in them."""

    frames: Tensor
    """uint8 (N, H, W, 3)."""
    poses: dict[str, Tensor]
    """Thing -> (x, y, z, angle), float32 (N, 4) [m, rad]."""


def probe(
    folder: Path,
    config: ProbeConfig,
    encoders: dict[str, EncoderConfig],
    resolutions: Sequence[int] = (84,),
    seeds: Sequence[int] = (0, 1, 2),
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    device: Device = "auto",
) -> list[Line]:
    """Train and measure every encoder at every resolution [px] from every seed; returns a line for each training.

    Seeds decide the initial weights, the batches and the crops; the scenes are the same for all.

    Args:
        folder: of results.jsonl, table.md and probe.png; what it holds is not repeated, more can be added later.
        config: the task and the budget, the same for everything in the folder; its `width` replaces the encoders'.
        workers: trainings at a time on a CPU, one thread each; None is one for each core. A GPU does one at a time.
    """
    torch_device = pick_device(device)
    report = progress or (lambda title, done, total: None)
    encoders = {name: replace(encoder, width=config.width) for name, encoder in encoders.items()}
    _check(config, encoders, resolutions, seeds)
    open_folder(folder, config)
    files = {r: _scene_files(config, r, cache_dir, workers, report) for r in resolutions}
    journal = folder / "results.jsonl"
    lines = _known_lines(journal)
    wanted = [(name, r, seed) for r in resolutions for name in encoders for seed in seeds]

    def find(job: Job) -> Line | None:
        wanted_line = job, encoders[job[0]]
        keys = (((_job(line), config_json.from_dict(EncoderConfig, line["config"])), line) for line in lines)
        return next((line for key, line in keys if key == wanted_line), None)

    missing = [job for job in wanted if find(job) is None]
    kept, start = len(wanted) - len(missing), len(lines)
    report("Probing", kept, len(wanted))

    def finish(line: Line) -> None:
        lines.append(line)
        write_lines(journal, lines)
        report("Probing", kept + len(lines) - start, len(wanted))

    work = [(job, encoders[job[0]], config, files[job[1]], torch_device) for job in missing]
    if torch_device.type == "cuda":
        for arguments in work:
            finish(_train(*arguments))
    else:
        with WorkerPool(workers) as pool:
            for future in as_completed([pool.submit(_train, *arguments) for arguments in work]):
                finish(future.result())
    everything = list({_job(line): line for line in lines}.values())
    write_text(folder / "table.md", markdown_table(everything))
    draw(everything, folder / "probe.png", f"{config.task}, camera {config.camera}")
    return [line for job in wanted if (line := find(job)) is not None]


def _known_lines(path: Path) -> list[Line]:
    """The trainings that are there; those whose line is damaged, or measured other things, are made again."""
    lines = read_journal(path, ProbeLine, key=_job).repaired("those trainings are made again")
    whole = [x for x in lines if x["errors"].keys() == x["constant"].keys() == lines[0]["errors"].keys()]
    if len(whole) < len(lines):
        console.print(f"{path} has lines that measured other things: those trainings are made again")
    return whole


def _job(line: Line) -> Job:
    return line["encoder"], line["resolution"], line["seed"]


def print_probe(
    folder: Path,
    config: ProbeConfig,
    encoders: Sequence[str],
    resolutions: Sequence[int],
    seeds: Sequence[int],
    workers: int | None = None,
    device: Device = "auto",
) -> None:
    """`probe` for the command line: names of encoders or JSON files in, a progress bar and a table out."""
    chosen = {}
    for name in encoders:
        path = Path(name)
        if path.suffix == ".json":
            chosen[path.stem] = config_json.load(EncoderConfig, path)
        else:
            chosen[name] = presets.encoder(name)
    bars = contextlib.ExitStack()
    bar: Bar | None = None

    def progress(title: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None or bar.title != title:
            bars.close()
            bar = bars.enter_context(Bar(title, total))
        bar.update(done)

    with bars:
        lines = probe(folder, config, chosen, resolutions, seeds, workers=workers, progress=progress, device=device)
    header, cells = table(lines)
    title = f"Held-out error, task {config.task}, camera {config.camera} (± 95% over seeds)"
    shown = Table(*header, title=title)
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
    console.print(f"Results: {folder / 'table.md'}, {folder / 'probe.png'}, {folder / 'results.jsonl'}")
    best = rows(lines)[0]
    console.print(f"Smallest mean distance: {best.encoder} at {best.resolution} px. Costs: prism info encoders")


def read_scenes(path: Path, camera: str) -> Scenes:
    """All scenes of a rendered file."""
    with open_demos(path) as file:
        demos = [file["data"][name] for name in demo_names(file)]
        frames = np.concatenate([demo[f"obs/{camera}_image"][:] for demo in demos])
        poses = {
            thing: torch.from_numpy(np.concatenate([demo[f"poses/{thing}"][:] for demo in demos]).astype(np.float32))
            for thing, group in demos[0]["poses"].items()
            if isinstance(group, h5py.Dataset)
        }
    return Scenes(torch.from_numpy(frames), poses)


class Targets:
    """Poses as numbers that a linear layer can regress, and back: standardised positions, cosine and sine of angles.

    An object that looks the same after 1/n of a turn has its angle taken n times, so that equal looks mean equal
    targets; one that looks the same after any turn has none.
    """

    def __init__(self, poses: dict[str, Tensor], folds: dict[str, int]) -> None:
        self.folds = folds
        self.mean = {thing: pose[:, :3].mean(0) for thing, pose in poses.items()}
        # An axis along which nothing ever moves would be divided by zero.
        self.std = {thing: pose[:, :3].std(0).clamp_min(1e-3) for thing, pose in poses.items()}
        self.constant = self.encode(poses).mean(0)
        """The best guess without looking, (dim,)."""

    @property
    def dim(self) -> int:
        """Numbers of a target."""
        return sum(3 + 2 * bool(n) for n in self.folds.values())

    def encode(self, poses: dict[str, Tensor]) -> Tensor:
        """(N, 4) a thing to (N, dim)."""
        columns = []
        for thing, n in self.folds.items():
            columns.append((poses[thing][:, :3] - self.mean[thing]) / self.std[thing])
            if n:
                angle = n * poses[thing][:, 3]
                columns.append(torch.stack([angle.cos(), angle.sin()], dim=1))
        return torch.cat(columns, dim=1)

    def errors(self, predicted: Tensor, poses: dict[str, Tensor]) -> dict[str, float]:
        """Mean distance [m] and, as "<thing> angle", mean absolute angle between prediction and truth [rad]."""
        errors: dict[str, float] = {}
        at = 0
        for thing, n in self.folds.items():
            position = predicted[:, at : at + 3] * self.std[thing] + self.mean[thing]
            errors[thing] = float((position - poses[thing][:, :3]).norm(dim=1).mean())
            at += 3
            if n:
                angle = torch.atan2(predicted[:, at + 1], predicted[:, at]) - n * poses[thing][:, 3]
                errors[f"{thing} angle"] = float(torch.atan2(angle.sin(), angle.cos()).abs().mean() / n)
                at += 2
        return errors


def _check(
    config: ProbeConfig, encoders: dict[str, EncoderConfig], resolutions: Sequence[int], seeds: Sequence[int]
) -> None:
    for name, values in (("encoders", encoders), ("resolutions", resolutions), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise PrismError(f"{name}: expected at least one and each only once, got {', '.join(map(str, values))}")
    check_ranges(config)
    if config.batch_size > config.train_frames:
        raise PrismError(f"batch_size: expected at most {config.train_frames} (train_frames), got {config.batch_size}")
    for seed in seeds:
        range_of(Seed).check(seed, "seeds")  # type: ignore[union-attr]
    with torch.device("meta"):
        for encoder, resolution in itertools.product(encoders.values(), resolutions):
            VisualEncoder(encoder, {config.camera: (resolution, resolution)}).load_pretrained()


def _scene_files(
    config: ProbeConfig, resolution: int, cache_dir: Path | None, workers: int | None, report: Progress
) -> list[Path]:
    """Rendered scenes to learn from, and others to measure on."""
    task = TaskConfig(config.task, (config.camera,), render=RenderConfig(resolution))
    files = []
    counts: dict[Split, int] = {"collect": config.train_frames, "evaluate": config.test_frames}
    for split, count in counts.items():
        show = partial(report, "Scenes")
        states = collect_scenes(task, count, split, config.scene_seed, cache_dir, workers, show)
        show = partial(report, f"Frames {resolution} px")
        files.append(render_demos(states, task, cache_dir, workers, show))
    return files


def _train(job: Job, encoder: EncoderConfig, config: ProbeConfig, files: list[Path], device: torch.device) -> Line:
    """One encoder from one seed. Runs in a process of its own on a CPU."""
    from prism_policy.envs.scenes import tracked

    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    (name, resolution, seed), (train, test) = job, (read_scenes(path, config.camera) for path in files)
    started = time.perf_counter()
    with keep_freed_memory():
        model, targets = fit(encoder, config, train, {t.name: t.folds for t in tracked(config.task)}, seed, device)
    seconds = time.perf_counter() - started
    visual = model[0]
    assert isinstance(visual, VisualEncoder)
    return {
        "encoder": name,
        "resolution": resolution,
        "seed": seed,
        "numbers": visual.out_dim,
        "parameters": sum(p.numel() for p in visual.parameters()),
        "seconds": seconds,
        "errors": targets.errors(predict(model, test), test.poses),
        "constant": targets.errors(targets.constant.expand(len(test.frames), -1), test.poses),
        "config": dataclasses.asdict(encoder),
    }


def fit(
    encoder: EncoderConfig,
    config: ProbeConfig,
    scenes: Scenes,
    folds: dict[str, int],
    seed: int,
    device: torch.device = CPU,
) -> tuple[nn.Sequential, Targets]:
    """Train an encoder and a linear layer on its output by mean squared error; the seed decides everything."""
    torch.manual_seed(seed)
    size = scenes.frames.shape[1:3]
    visual = VisualEncoder(encoder, {config.camera: (size[0], size[1])})
    visual.load_pretrained()
    targets = Targets(scenes.poses, folds)
    model = nn.Sequential(visual, nn.Linear(visual.out_dim, targets.dim))
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    frames, wanted = scenes.frames.to(device), targets.encode(scenes.poses).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, fused=True)
    warmup = max(config.steps // 20, 1)

    def share_of_rate(n: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * max(n - warmup, 0) / (config.steps - warmup + 1)))
        return min((n + 1) / warmup, cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(order) < config.batch_size:
            order = torch.randperm(len(frames), generator=generator)
        batch, order = order[: config.batch_size].to(device), order[config.batch_size :]
        loss = (model({config.camera: frames[batch]}) - wanted[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), targets


@torch.no_grad()
def predict(model: nn.Sequential, scenes: Scenes) -> Tensor:
    """Targets (N, dim) that the model sees in the frames."""
    visual = model[0]
    assert isinstance(visual, VisualEncoder)
    (camera,) = visual.cameras
    device = next(model.parameters()).device
    return torch.cat([model({camera: x.to(device)}).cpu() for x in torch.split(scenes.frames, 100)])
