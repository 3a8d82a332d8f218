"""Shared pieces: a run small enough for tests, and synthetic episodes."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

# The tests' networks are small, and OpenMP's waiting threads steal the cores of the tests beside them. Set before torch
# is imported, as torch.set_num_threads reaches the calling thread alone, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest

from prism_policy.config import presets
from prism_policy.config.settings import RunConfig
from prism_policy.data.robomimic import Episode
from prism_policy.envs import workers

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it, and their children
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def shared_simulators() -> Iterator[None]:
    """The tests of a process share its simulators, as each takes seconds to start."""
    with workers.kept_workers():
        yield


@pytest.fixture
def own_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about workers' lives: none is there before, and the test's own end with their pool."""
    while workers._kept:
        worker = workers._kept.pop()
        worker.kill("was ended")
        worker.close()
    monkeypatch.setattr(workers, "_kept", None)


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """The smoke preset with a narrow network: an update takes a few milliseconds."""
    config = presets.smoke(presets.nano())
    policy = replace(config.policy, down_dims=(16, 32), step_embed_dim=16)
    return replace(config, policy=policy, train=replace(config.train, steps=8, checkpoint_minutes=0.0))


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    """Two episodes of random frames and actions, 30 and 25 steps."""
    rng = np.random.default_rng(0)
    made = []
    for name, steps in (("demo_0", 30), ("demo_1", 25)):
        images = {c: rng.integers(0, 256, (steps, 84, 84, 3), np.uint8) for c in ("agentview", "robot0_eye_in_hand")}
        state = rng.normal(size=(steps, 9)).astype(np.float32)
        actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
        made.append(Episode(name, images, state, actions, np.zeros(steps, bool), np.zeros((steps, 0))))
    return made
