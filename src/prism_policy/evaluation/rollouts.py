"""Rollouts of a policy from unseen starts, each written down as it ends."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from prism_policy.config.settings import EvalConfig, RunConfig, TaskConfig, single_tasks
from prism_policy.config.typed_json import read_json
from prism_policy.data.actions import decode_absolute
from prism_policy.data.schema import task_schema
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.workers import Outcome, Request, WorkerPool
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import read_records, read_states, states_path
from prism_policy.policies import Policy
from prism_policy.run_folder import differences
from prism_policy.utils.cores import available_cores
from prism_policy.utils.files import atomic, disk_errors, write_lines, write_text
from prism_policy.utils.observations import Observation, stack_history
from prism_policy.utils.progress import console
from prism_policy.utils.text import shown

NOISE_STREAM = 1  # stream 0 of an episode's random generators places the objects
GPU_ROWS = 16
"""Rows of every call of the policy on a GPU. A batch of another size runs other kernels, whose sums differ in their
last bits, and soon the trajectories do: so the size must not follow how many episodes happen to wait."""


def evaluate(
    folder: Path,
    config: RunConfig,
    policy: Policy,
    eval_config: EvalConfig | None = None,
    simulators: WorkerPool | None = None,
    on_episode: Callable[[list[dict[str, Any]]], None] | None = None,
    other_weights: Literal["refuse", "drop"] = "refuse",
    task: TaskConfig | None = None,
) -> list[dict[str, Any]]:
    """Roll out episodes and keep their outcomes in `folder`; returns one record an episode, in order.

    A finished episode is written at once to folder/episodes.jsonl (its states to folder/states/), so an evaluation that
    was killed goes on with the episodes that are missing, and a longer one adds to a shorter one.

    Args:
        policy: what acts, in evaluation mode and on the device that shall compute.
        simulators: worker processes to use; by default one for each core, for this call.
        on_episode: called with the records so far when an episode has ended.
        other_weights: what to do about episodes in the folder that other weights played. A training that repeats its
            last updates on a GPU comes back with slightly other ones.
        task: what is simulated; by default the run's, which must be a single one.
    """
    eval_config = eval_config or config.evaluate
    if eval_config.n_episodes < 1:
        raise PrismError(f"expected at least one episode, got {eval_config.n_episodes}")
    if task is None:
        (task,) = single_tasks(config.task)
    actor = _Actor(policy, task, eval_config)
    records = _open_folder(folder, task, policy, eval_config, other_weights)
    done = {r["episode"] for r in records}

    def finish(outcome: Outcome) -> None:
        records.append(_write_episode(folder, eval_config, outcome))
        if on_episode:
            on_episode(records)

    threads = torch.get_num_threads()
    try:
        with ExitStack() as stack:
            simulators = simulators or stack.enter_context(WorkerPool(available_cores()))
            simulators.rollouts(
                task,
                [i for i in range(eval_config.n_episodes) if i not in done],
                actor.act,
                finish,
                split=eval_config.split,
                seed=eval_config.seed,
                n_obs_steps=policy.config.n_obs_steps,
                batch_size=actor.rows,
                threads=acting_threads(policy, simulators.workers),
            )
    finally:
        torch.set_num_threads(threads)
    return sorted(records, key=lambda r: r["episode"])


class _Actor:
    """A policy that answers the simulators, with noise of its own for each episode."""

    def __init__(self, policy: Policy, task: TaskConfig, eval_config: EvalConfig) -> None:
        self.policy, self.eval_config = policy, eval_config
        self.absolute = task.action_mode == "absolute"
        if task.spec.own_robot and policy.action_dim != (expected := task_schema(task).action_dim):
            raise PrismError(
                f"expected a policy of {expected} numbers an action, as task.action_mode '{task.action_mode}' has, got "
                f"one of {policy.action_dim}"
            )
        self.rows = rows_of(policy)
        self.instruction = policy.task_condition(task)
        self.generators: dict[int, torch.Generator] = {}

    def act(self, requests: Sequence[Request]) -> list[np.ndarray]:
        # One thread: the simulators need the other cores, and so the sums do not depend on how many there are. Set in
        # every call, as OpenMP keeps the number for each calling thread, and this runs in threads of a pool.
        torch.set_num_threads(1)
        for request in requests:
            if request.first:  # also when a lost worker's episode starts again
                noise = episode_noise(self.eval_config.split, self.eval_config.seed, request.episode)
                self.generators[request.episode] = noise
        episodes = [r.episode for r in requests]
        observations, noises = [r.observation for r in requests], [self.generators[e] for e in episodes]
        chunks = sample_chunks(self.policy, observations, noises, episodes, self.rows, self.instruction)
        return [decode_absolute(a) if self.absolute else a for a in chunks[:, self.policy.executed]]


def _write_episode(folder: Path, eval_config: EvalConfig, outcome: Outcome) -> dict[str, Any]:
    """Keep an episode's states and its record, which is returned."""
    with atomic(states_path(folder, outcome.episode)) as temporary, open(temporary, "wb") as file:
        np.save(file, outcome.states, allow_pickle=False)
    record: dict[str, Any] = {"split": eval_config.split, "seed": eval_config.seed}
    record |= {name: getattr(outcome, name) for name in ("episode", "success", "steps", "stage")}
    journal = folder / "episodes.jsonl"
    with disk_errors(journal), open(journal, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return record


def rows_of(policy: Policy) -> int:
    """Rows of every call of the policy where it is: see `GPU_ROWS`."""
    return 1 if policy.device.type == "cpu" else GPU_ROWS


def as_batch(observations: Sequence[Observation]) -> dict[str, Any]:
    """Observations of numpy arrays (To, ...) as one batch of tensors (B, To, ...)."""
    batch = stack_history(observations)
    images = {camera: torch.from_numpy(x) for camera, x in batch["images"].items()}
    return {"images": images, "state": torch.from_numpy(batch["state"])}


def acting_threads(policy: Policy, workers: int) -> int:
    """How many episodes a policy acts for at a time: on a CPU a large one for as many as there are cores."""
    return min(workers, available_cores()) if policy.gains_from_cores else 1


def sample_chunks(
    policy: Policy,
    observations: Sequence[dict[str, Any]],
    generators: Sequence[torch.Generator],
    episodes: Sequence[int],
    rows: int,
    instruction: Mapping[str, torch.Tensor] | None = None,
) -> np.ndarray:
    """Whole action chunks (n, T, A), in the environment's units, of n episodes, each with noise of its own.

    The policy is called with exactly `rows` rows, those that nobody needs filled with copies. An episode's row follows
    from its number, for a kernel may treat its first rows otherwise than its last; two of the same row take turns.
    """
    draws = [policy.draw_sampling(1, generator) for generator in generators]
    left = list(range(len(episodes)))
    chunks: dict[int, np.ndarray] = {}
    while left:
        taken: dict[int, int] = {}  # row -> index of the episode
        for i in left:
            taken.setdefault(episodes[i] % rows, i)
        left = [i for i in left if i not in taken.values()]
        source = [taken.get(row, next(iter(taken.values()))) for row in range(rows)]
        task = {key: x.expand(rows, -1) for key, x in (instruction or {}).items()}
        batch = as_batch([observations[i] for i in source]) | task
        together = {name: torch.cat([draws[i][name] for i in source]) for name in draws[0]}
        actions = policy.predict_chunk(batch, draws=together).cpu().numpy()  # (rows, T, A)
        chunks |= {i: actions[row] for row, i in taken.items()}
    return np.stack([chunks[i] for i in range(len(episodes))])


def episode_noise(split: str, seed: int, episode: int) -> torch.Generator:
    """The generator of an episode's policy noise: of (split, seed, episode) alone, whatever runs beside it."""
    word = episode_rng(split, seed, episode, NOISE_STREAM).integers(2**63)
    return torch.Generator().manual_seed(int(word))


def _settings_there(path: Path, drop: bool) -> dict[str, Any] | None:
    """What settings.json says; None where there is none, or a damaged one whose episodes may be dropped."""
    if not path.exists():
        return None
    try:
        unknown = f"which weights played the episodes beside it is not known: move {path.parent} away to measure anew"
        return dict(read_json(path, dict[str, Any], unknown))
    except PrismError as error:
        if not drop:
            raise
        console.print(f"{error.problem}: its episodes are played again")
        return {}


def _has_states(folder: Path, episode: int) -> bool:
    """Whether an episode's states are there and sound; says so where they are damaged."""
    path = states_path(folder, episode)
    if not path.exists():
        return False
    try:
        read_states(path)
    except PrismError as error:
        console.print(f"{error.problem}: the episode is played again")
        return False
    return True


def _open_folder(
    folder: Path, task: TaskConfig, policy: Policy, eval_config: EvalConfig, other_weights: str
) -> list[dict[str, Any]]:
    """Make the folder of these episodes or accept it; returns the records of those that are done."""
    path, journal = folder / "settings.json", folder / "episodes.jsonl"
    settings = {
        "split": eval_config.split,
        "seed": eval_config.seed,
        "weights": policy.fingerprint(),
        "task": dataclasses.asdict(task),
        "policy": dataclasses.asdict(policy.config),
    }
    settings = json.loads(json.dumps(settings))  # as they come back: lists for tuples
    drop = other_weights == "drop"
    there = _settings_there(path, drop)
    if there is not None and there.get("weights") != settings["weights"] and drop:
        write_lines(journal, [])
        there = None
    if there is None:
        write_text(path, json.dumps(settings, indent=2) + "\n")
    for key, old, new in differences(settings if there is None else there, settings):
        other = f"{key[:80]} was {shown(old)} and is now {shown(new)}"
        raise PrismError(f"{folder} holds episodes of another evaluation: {other}; move it away to measure anew")
    records = read_records(folder).repaired("the episodes that are missing are played again")
    known = [r for r in records if _has_states(folder, r["episode"])]
    write_lines(journal, known)  # drops a line cut off by a kill
    return [r for r in known if r["episode"] < eval_config.n_episodes]
