"""All randomness is of the generator that was given: the same seed gives the same bits, whatever runs beside it."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from prism_policy.config import presets
from prism_policy.config.settings import PolicyKind, RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows
from prism_policy.evaluation.rollouts import sample_chunks
from prism_policy.run_folder import make_policy, open_run
from prism_policy.training.trainer import Trainer, validate
from small_run import small_config, small_windows

ALL = [*itertools.product(presets.ENCODERS, get_args(PolicyKind), (False,)),
       *itertools.product(("sspool", "prism"), get_args(PolicyKind), (True,))]  # fmt: skip
QUICK = [("prism", "flow_matching", True), ("ms_maxpool", "meanflow", False)]
GRID = [*QUICK, *(pytest.param(*some, marks=pytest.mark.slow) for some in ALL if some not in QUICK)]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    return small_windows(tmp_path_factory.mktemp("demos"))


def config_of(encoder: str, kind: PolicyKind, shuffle: bool) -> RunConfig:
    config = small_config("--train.valid-every 5", "--train.checkpoint-minutes 0", kind=kind)
    stages = (1, 2) if presets.encoder(encoder).fusion != "last" else (2,)
    tiny = {"width": 16, "stages": stages, "attention_dim": 16, "out_dim": 16, "shuffle_keypoints": shuffle}
    return replace(config, policy=replace(config.policy, encoder=replace(presets.encoder(encoder), **tiny)))


def trained(folder: Path, config: RunConfig, windows: Windows, monkeypatch: pytest.MonkeyPatch, noisy: bool) -> str:
    """The weights after 12 updates; where `noisy`, batches come late and others use torch's global generator."""
    open_run(folder, config)
    prepare, late = Trainer.prepare, np.random.default_rng()

    def disturbed(self: Trainer, step: int) -> dict[str, object]:
        torch.rand(1 + step)
        torch.manual_seed(step)
        time.sleep(late.exponential(0.01))  # before a validation is over, or after it has begun
        return prepare(self, step)

    with monkeypatch.context() as patch:
        if noisy:
            patch.setattr(Trainer, "prepare", disturbed)
            torch.manual_seed(123)
        return Trainer(folder, config, windows, valid=windows).train().fingerprint()


@pytest.mark.parametrize(("encoder", "kind", "shuffle"), GRID)
def test_acting_and_validating_follow_from_the_generator(
    windows: Windows, encoder: str, kind: PolicyKind, shuffle: bool
) -> None:
    config = config_of(encoder, kind, shuffle)
    config = replace(config, policy=replace(config.policy, ddpm=replace(config.policy.ddpm, num_inference_steps=2)))
    policy = make_policy(config, task_schema(config.task)).eval()
    batch = windows.batch(torch.tensor([3, 9]))
    rows = [{"images": {"agentview": batch["images"]["agentview"][i].numpy()}, "state": batch["state"][i].numpy()}  # type: ignore[index]
            for i in range(2)]  # fmt: skip

    def act(disturbance: int) -> list[Tensor]:
        torch.manual_seed(disturbance)
        actions = policy.act(batch, torch.Generator().manual_seed(5))
        return [actions, torch.tensor(list(validate(policy, windows, 8).values()))]

    policy.eval()
    first = act(1)
    policy.eval()
    assert all(torch.equal(a, b) for a, b in zip(first, act(2), strict=True))
    policy.eval()

    def chunks(episodes: list[int]) -> np.ndarray:
        generators = [torch.Generator().manual_seed(episode) for episode in episodes]
        return sample_chunks(policy, [rows[e] for e in episodes], generators, episodes, rows=1)

    together = chunks([0, 1])
    assert np.array_equal(together, np.concatenate([chunks([0]), chunks([1])]))  # whatever is played beside it
    assert np.array_equal(together, chunks([1, 0])[::-1])


@pytest.mark.parametrize(("encoder", "kind", "shuffle"), GRID)
def test_training_follows_from_the_seed_however_late_its_batches_are(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch, encoder: str, kind: PolicyKind, shuffle: bool
) -> None:
    config = config_of(encoder, kind, shuffle)
    quiet, noisy = (trained(tmp_path / str(noisy), config, windows, monkeypatch, noisy) for noisy in (False, True))
    assert quiet == noisy
