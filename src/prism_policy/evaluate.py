"""A policy's success, measured: rollouts from unseen starts, journaled as they end, with an honest interval."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_policy.config import RunConfig
from prism_policy.data.actions import decode_absolute
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.workers import Outcome, rollouts
from prism_policy.errors import PrismError
from prism_policy.files import atomic, disk_errors, read_lines, write_lines
from prism_policy.policies import Policy

NOISE_STREAM = 1  # stream 0 of an episode's random generators places the objects


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion: sound for few episodes and at 0 and 100%, unlike the normal one."""
    if not 0 <= successes <= n or n == 0:
        raise PrismError(f"expected 0 <= successes <= n and n > 0, got {successes} of {n}")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def episode_noise(split: str, seed: int, episode: int) -> torch.Generator:
    """The generator of an episode's policy noise: of (split, seed, episode) alone, whatever runs beside it."""
    word = episode_rng(split, seed, episode, NOISE_STREAM).integers(2**63)
    return torch.Generator().manual_seed(int(word))


def evaluate(
    folder: Path,
    config: RunConfig,
    policy: Policy,
    workers: int | None = None,
    on_episode: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Roll out the configured episodes; returns one record an episode, in order.

    A finished episode is journaled at once in results/episodes.jsonl (its states beside it, in results/states/), so an
    evaluation that was killed goes on with the episodes that are missing.
    """
    settings = config.evaluate
    if settings.n_episodes < 1:
        raise PrismError(f"expected at least one episode, got {settings.n_episodes}")
    journal = folder / "results" / "episodes.jsonl"
    stream = {"split": settings.split, "seed": settings.seed}
    known = [r for r in read_lines(journal) if stream.items() <= r.items()]
    known = [r for r in known if states_path(folder, r["episode"]).exists()]
    with disk_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        write_lines(journal, known)  # drops a line cut off by a kill
    records = [r for r in known if r["episode"] < settings.n_episodes]
    generators: dict[int, torch.Generator] = {}
    threads = torch.get_num_threads()
    # One thread: the simulators need the other cores, and the sums do not depend on how many there are.
    torch.set_num_threads(1)

    def act(episode: int, observation: dict[str, Any], first: bool) -> np.ndarray:
        if first:  # also when a dead worker's episode starts again
            generators[episode] = episode_noise(settings.split, settings.seed, episode)
        batch = {
            "images": {c: torch.from_numpy(x)[None] for c, x in observation["images"].items()},
            "proprio": torch.from_numpy(observation["proprio"])[None],
        }
        actions = policy.act(batch, generators[episode])[0].numpy()
        return decode_absolute(actions) if config.task.action_mode == "absolute" else actions

    def finish(outcome: Outcome) -> None:
        with atomic(states_path(folder, outcome.episode)) as temporary, open(temporary, "wb") as file:
            np.save(file, outcome.states, allow_pickle=False)
        records.append({**stream, "episode": outcome.episode, "success": outcome.success, "steps": outcome.steps})
        with disk_errors(journal), open(journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if on_episode:
            on_episode(records)

    done = {r["episode"] for r in records}
    missing = [i for i in range(settings.n_episodes) if i not in done]
    try:
        rollouts(
            config.task,
            missing,
            act,
            finish,
            split=settings.split,
            seed=settings.seed,
            n_obs_steps=config.policy.n_obs_steps,
            workers=workers or available_cores(),
        )
    finally:
        torch.set_num_threads(threads)
    return sorted(records, key=lambda r: r["episode"])


def states_path(folder: Path, episode: int) -> Path:
    """Where an evaluated episode's simulator states lie: float64 (steps + 1, S)."""
    return folder / "results" / "states" / f"episode_{episode:03d}.npy"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success rate with its interval over the episodes."""
    successes = sum(r["success"] for r in records)
    return {
        "success_rate": successes / len(records),
        "n_episodes": len(records),
        "n_success": successes,
        "wilson_95": list(wilson_interval(successes, len(records))),
        "mean_steps_to_success": float(np.mean([r["steps"] for r in records if r["success"]])) if successes else None,
    }
