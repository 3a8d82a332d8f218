"""A policy's success in a stream of episodes, measured: rollouts from unseen starts, journaled as they end."""

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

from prism_policy.config.settings import EvalConfig, PolicyConfig, RunConfig
from prism_policy.data.actions import decode_absolute
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.workers import Outcome, Request, Simulators
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.tasks.libero import SimTask, single_tasks
from prism_policy.utils.cores import available_cores
from prism_policy.utils.files import atomic, disk_errors, read_lines, write_lines, write_text

NOISE_STREAM = 1  # stream 0 of an episode's random generators places the objects
GPU_ROWS = 16
"""Rows of every call of the policy on a GPU. A batch of another size runs other kernels, whose sums differ in their
last bits, and soon the trajectories do: so the size must not follow how many episodes happen to wait."""
PARALLEL_FROM = 20_000_000
"""Parameters from which two calls on two cores are faster than one after the other (1.6 times at the paper's size);
those of a small network wait for Python's lock most of the time, and are slower side by side (0.7 at nano's)."""


def evaluate(
    folder: Path,
    config: RunConfig,
    policy: Policy,
    stream: EvalConfig | None = None,
    simulators: Simulators | None = None,
    on_episode: Callable[[list[dict[str, Any]]], None] | None = None,
    other_weights: Literal["refuse", "drop"] = "refuse",
    task: SimTask | None = None,
) -> list[dict[str, Any]]:
    """Roll out the episodes of a stream; returns one record an episode, in order.

    A finished episode is journaled at once in folder/episodes.jsonl (its states beside it, in folder/states/), so an
    evaluation that was killed goes on with the episodes that are missing, and a longer one adds to a shorter one.

    Args:
        folder: of this stream's results.
        config: the run.
        policy: whose success it is, in evaluation mode and where it shall compute.
        stream: split, seed and number of episodes; None is the config's own.
        simulators: worker processes to use; None is one for each core, for this call.
        on_episode: called with the records so far when an episode has ended.
        other_weights: what becomes of episodes in the folder that other weights played. A training that repeats its
            last updates on a GPU comes back with slightly other ones.
        task: what is simulated; None is the run's, which must be a single one.

    Raises:
        PrismError: no episodes asked for, a policy of another action mode, or a folder with results of other weights
            or another task.
    """
    stream = stream or config.evaluate
    if stream.n_episodes < 1:
        raise PrismError(f"expected at least one episode, got {stream.n_episodes}")
    if task is None:
        (task,) = single_tasks(config.task)
    absolute = task.action_mode == "absolute"
    if policy.action_dim != (10 if absolute else 7):
        raise PrismError(
            f"expected a policy of {10 if absolute else 7} numbers an action, as task.action_mode "
            f"'{task.action_mode}' has, got one of {policy.action_dim}"
        )
    records = _open_stream(folder, task, policy, stream, other_weights)
    done = {r["episode"] for r in records}
    missing = [i for i in range(stream.n_episodes) if i not in done]
    generators: dict[int, torch.Generator] = {}
    rows = 1 if policy.device.type == "cpu" else GPU_ROWS
    instruction = policy.task_condition(task)

    def act(requests: Sequence[Request]) -> list[np.ndarray]:
        # One thread: the simulators need the other cores, and so the sums do not depend on how many there are.
        torch.set_num_threads(1)
        for request in requests:
            if request.first:  # also when a lost worker's episode starts again
                generators[request.episode] = episode_noise(stream.split, stream.seed, request.episode)
        episodes = [r.episode for r in requests]
        found = sample_chunks(
            policy, [r.observation for r in requests], [generators[e] for e in episodes], episodes, rows, instruction
        )
        return [decode_absolute(a) if absolute else a for a in found[:, policy.executed]]

    def finish(outcome: Outcome) -> None:
        with atomic(states_path(folder, outcome.episode)) as temporary, open(temporary, "wb") as file:
            np.save(file, outcome.states, allow_pickle=False)
        records.append(
            {
                "split": stream.split,
                "seed": stream.seed,
                "episode": outcome.episode,
                "success": outcome.success,
                "steps": outcome.steps,
                "stage": outcome.stage,
            }
        )
        journal = folder / "episodes.jsonl"
        with disk_errors(journal), open(journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if on_episode:
            on_episode(records)

    threads = torch.get_num_threads()
    try:
        with ExitStack() as stack:
            simulators = simulators or stack.enter_context(Simulators(available_cores()))
            simulators.rollouts(
                task,
                missing,
                act,
                finish,
                split=stream.split,
                seed=stream.seed,
                n_obs_steps=policy.config.n_obs_steps,
                batch_size=rows,
                threads=acting_threads(policy, simulators.workers),
            )
    finally:
        torch.set_num_threads(threads)
    return sorted(records, key=lambda r: r["episode"])


def acting_threads(policy: Policy, workers: int) -> int:
    """How many episodes a policy acts for at a time: on a CPU a large one for as many as there are cores."""
    size = sum(p.numel() for p in policy.parameters())
    alone = policy.device.type != "cpu" or size < PARALLEL_FROM
    return 1 if alone else min(workers, available_cores())


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
    from its number, for a kernel may treat its first rows otherwise than its last; two of the same row take turns. What
    `Policy.task_condition` returned goes to all of them.
    """
    noise = [policy.draw_noise(1, generator) for generator in generators]
    left = list(range(len(episodes)))
    chunks: dict[int, np.ndarray] = {}
    while left:
        taken: dict[int, int] = {}  # row -> index of the episode
        for i in left:
            taken.setdefault(episodes[i] % rows, i)
        left = [i for i in left if i not in taken.values()]
        source = [taken.get(row, next(iter(taken.values()))) for row in range(rows)]
        images = {c: np.stack([observations[i]["images"][c] for i in source]) for c in observations[0]["images"]}
        batch = {
            "images": {c: torch.from_numpy(x) for c, x in images.items()},
            "proprio": torch.from_numpy(np.stack([observations[i]["proprio"] for i in source])),
            **{key: x.expand(rows, -1) for key, x in (instruction or {}).items()},
        }
        actions = policy.predict_chunk(batch, noise=torch.cat([noise[i] for i in source])).cpu().numpy()  # (rows, T, A)
        chunks |= {i: actions[row] for row, i in taken.items()}
    return np.stack([chunks[i] for i in range(len(episodes))])


def episode_noise(split: str, seed: int, episode: int) -> torch.Generator:
    """The generator of an episode's policy noise: of (split, seed, episode) alone, whatever runs beside it."""
    word = episode_rng(split, seed, episode, NOISE_STREAM).integers(2**63)
    return torch.Generator().manual_seed(int(word))


def _open_stream(
    folder: Path, task: SimTask, policy: Policy, stream: EvalConfig, other_weights: str
) -> list[dict[str, Any]]:
    """Make the folder of a stream or accept it; returns the records of those of its episodes that are done."""
    manifest, journal = folder / "stream.json", folder / "episodes.jsonl"
    wanted = {
        "split": stream.split,
        "seed": stream.seed,
        "weights": policy.fingerprint(),
        "task": {"name": task.name, **dataclasses.asdict(task)},
        "policy": dataclasses.asdict(policy.config),
    }
    wanted = json.loads(json.dumps(wanted))  # as it comes back: lists for tuples
    defaults = {"task": dataclasses.asdict(type(task)()), "policy": dataclasses.asdict(PolicyConfig())}
    if manifest.exists():
        found = json.loads(manifest.read_text())
        for key, values in defaults.items():  # settings that did not exist yet when it was written
            found[key] = json.loads(json.dumps(values)) | found.get(key, {})
        if other_weights == "drop" and found.get("weights") != wanted["weights"]:
            write_lines(journal, [])
            write_text(manifest, json.dumps(wanted, indent=2) + "\n")
        elif other := [key for key in wanted if found.get(key) != wanted[key]]:
            raise PrismError(
                f"{folder} holds episodes of another evaluation: {other[0]} was {found.get(other[0])} and is now "
                f"{wanted[other[0]]}; move that folder away to measure anew"
            )
    else:
        write_text(manifest, json.dumps(wanted, indent=2) + "\n")
    known = [r for r in read_lines(journal) if states_path(folder, r["episode"]).exists()]
    write_lines(journal, known)  # drops a line cut off by a kill
    return [r for r in known if r["episode"] < stream.n_episodes]


def states_path(folder: Path, episode: int) -> Path:
    """Where a stream's folder keeps an episode's simulator states: float64 (steps + 1, S)."""
    return folder / "states" / f"episode_{episode:03d}.npy"
