"""`prism train`: demonstrations, training, rollouts and metrics of one run folder, in one process or several."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from prism_policy.config.settings import Device, RunConfig, Tracker, check, single_tasks
from prism_policy.data.schema import task_schema
from prism_policy.demos.dataset import Dataset, file_prints, fit_to_dataset, open_dataset
from prism_policy.envs.workers import WorkerPool
from prism_policy.evaluation.open_loop import in_words, measure_open_loop, open_loop_path
from prism_policy.evaluation.results import summarise
from prism_policy.evaluation.rollouts import evaluate
from prism_policy.policies import Policy
from prism_policy.run_folder import RunData, is_trained, keep_data, open_run, read_data, read_metrics, weightless_policy
from prism_policy.training.distributed import join
from prism_policy.training.health import check_memory
from prism_policy.training.loggers import check_trackers, trackers
from prism_policy.training.runtime import warn_of_slow_bfloat16
from prism_policy.training.trainer import Rollout, Trainer
from prism_policy.utils.cores import available_cores
from prism_policy.utils.device import pick_device
from prism_policy.utils.files import folder_lock, sweep
from prism_policy.utils.progress import Bar, Stage, console, untimed
from prism_policy.utils.terminal import shell


def train_run(
    folder: Path,
    config: RunConfig,
    *,
    device: Device = "auto",
    track: Sequence[Tracker] = (),
    max_s: float = math.inf,
    stage: Stage = untimed,
) -> None:
    """Train, or go on training, the run in `folder`, and print a summary.

    `stage` is a context around each stage, "demos", "render" and "train", such as one that takes its time.

    Raises:
        PrismError: bad input; another process trains this run; `max_s` is over.
    """
    check_trackers(track)
    with join(device) as group, ExitStack() as locks:
        torch_device = pick_device(device, group.local_rank)
        with group.main_process_first():
            config, schema = fit_to_dataset(config)
            check(config)  # bad settings are refused before anything is made
            group.check(config)
            check_memory(config, schema, torch_device, group.world_size)
            if config.policy.encoder.pretrained and not (folder / "checkpoints").exists():
                robot = schema or task_schema(config.task)
                weightless_policy(config, robot).encoder.load_pretrained()  # the weights are there, and fit
            open_run(folder, config, schema)
        group.check_alike(asdict(replace(config, dataset="")), "start the same command on every machine")
        measured = config.task.spec.simulated or open_loop_path(folder).exists()
        if group.of_main(is_trained(folder) and measured):  # the last things that a training writes
            sweep(folder)
            console.print(f"{folder} is trained already: nothing is written")
            _note_other_data(folder, config)
            _summary(folder, config)
            return
        with group.main_process_first():
            if group.is_main_process:
                locks.enter_context(folder_lock(folder, "training"))
            dataset = open_dataset(config, stage)
            if group.is_main_process:
                keep_data(folder, _run_data(dataset))
        about = {
            "checksum of the demonstrations": dataset.content[:12],
            "demonstrations to learn from": dataset.names[0],
        }
        group.check_alike(about, "copy the dataset or the cache from one machine to the others (rsync -a)")
        warn_of_slow_bfloat16(config, torch_device)
        simulator = config.task.spec.simulator
        missing = dataset.train_only
        if not missing and not importlib.util.find_spec(simulator.package):
            missing = f"{simulator.name} is not installed (pip install prism-policy[{simulator.extra}])"
        missing = group.of_main(missing)  # it is the main process that rolls out
        rollout = None if missing else _rollout(folder, config)
        if missing and 0 < config.train.rollout_every <= config.train.steps:
            console.print(f"No rollouts while training: {missing}")
        loggers = trackers(track if group.is_main_process else (), folder, config)
        with stage("train"), loggers as others, Bar("Training", config.train.steps) as bar:

            def on_update(done: int, line: dict[str, float]) -> None:
                for call in (bar.train, *others):
                    call(done, line)

            trainer = Trainer(
                folder, config, dataset.train, on_update, dataset.valid, max_s, rollout, group, torch_device
            )
            policy = trainer.train()
        _summary(folder, config)
        if group.is_main_process and not config.task.spec.simulated:
            compare_actions(folder, policy, dataset)


def compare_actions(folder: Path, policy: Policy, dataset: Dataset) -> None:
    """Measure what can be measured without a simulator: predicted against recorded actions."""
    windows = dataset.valid or dataset.train
    names = dataset.names[1] if dataset.valid else dataset.names[0]
    result = measure_open_loop(folder, policy, windows, windows.frames.indices(names), dataset.valid is not None)
    console.print(in_words(result), f"Picture: {folder / 'figures' / 'open_loop.png'}")


def _run_data(dataset: Dataset) -> RunData:
    train, valid = (tuple(names) for names in dataset.names)
    facts = dataset.schema, dataset.recorded, dataset.action_range
    return RunData(dataset.content, dataset.files, train, valid, dataset.train_only, *facts)


def _note_other_data(folder: Path, config: RunConfig) -> None:
    """Say so where a finished run's demonstrations are not those that are given now."""
    given, learned = file_prints(config), read_data(folder)
    if given is not None and learned is not None and given != learned.files:
        other = f"{config.dataset} is another file than the one it learned from; to learn from this one"
        console.print(f"{other}, choose another --out")


def _rollout(folder: Path, config: RunConfig) -> Rollout:
    """Episodes of the split `validate`, in a folder of their own for each update that is measured."""
    tasks = single_tasks(config.task)
    n_episodes = math.ceil(config.train.rollout_episodes / len(tasks))
    settings = replace(config.evaluate, n_episodes=n_episodes, split="validate")

    def rollout(policy: Policy, done: int, raise_if_stopped: Callable[[], None]) -> dict[str, float]:
        base = folder / "rollouts" / f"update_{done:06d}"
        records = []
        with WorkerPool(available_cores()) as simulators:
            for task in tasks:
                place = base / task.name if len(tasks) > 1 else base
                records += evaluate(
                    place, config, policy, settings, simulators, lambda _: raise_if_stopped(), "drop", task
                )
        summary = summarise(records)
        low, high = summary["wilson_95"]
        console.print(
            f"Update {done}: {summary['n_success']} of {summary['n_episodes']} validation episodes succeeded "
            f"({summary['success_rate']:.0%}, 95% interval {low:.0%} to {high:.0%})"
        )
        return {"success_rate": summary["success_rate"], "rollout_episodes": summary["n_episodes"]}

    return rollout


def _in_words(threads: list[int]) -> str:
    if len(threads) > 1:
        return f"{threads[0]} to {threads[-1]} threads, as others used the cores"
    return f"{threads[0]} thread{'s' * (threads[0] > 1)}"


def _summary(folder: Path, config: RunConfig) -> None:
    """Print the closing lines of a training."""
    if not (lines := read_metrics(folder).repaired("the summary is of the other lines")):
        console.print(f"{folder / 'metrics.jsonl'} holds no lines: there is no summary of the training")
        return
    last = lines[-1]
    rates = sorted(line["samples_per_s"] for line in lines)
    waited = sum(line["waiting"] for line in lines) / len(lines)
    threads = _in_words(sorted({line["threads"] for line in lines}))
    console.print(
        f"{last['step']} updates of {config.train.batch_size} windows in {last['wall_s']:.0f} s "
        f"({rates[len(rates) // 2]:.0f} windows/s, {waited:.1%} of it waiting for data; {threads}); "
        f"loss {last['loss']:.4g}"
    )
    if held_out := [line for line in lines if "valid_loss" in line]:
        best = min(held_out, key=lambda line: line["valid_loss"])
        console.print(
            f"Held out: loss {held_out[-1]['valid_loss']:.4g} (lowest {best['valid_loss']:.4g} at update "
            f"{best['step']}), action error {held_out[-1]['valid_action_error']:.3g}"
        )
    if rolled := [line for line in lines if "success_rate" in line]:
        best = max(rolled, key=lambda line: (line["success_rate"], line["step"]))
        console.print(
            f"Best by rollouts: {best['success_rate']:.0%} of {best['rollout_episodes']} validation episodes at update "
            f"{best['step']}; chosen on them, so measure it on others: {shell('prism', 'evaluate', folder)} "
            "--checkpoints best"
        )
