"""The contract that all policies share, and that each learns a distribution and not its mean."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from panda import schema
from prism_policy.config.settings import EncoderConfig, FlowMatchingConfig, PolicyConfig, PolicyKind
from prism_policy.errors import PrismError
from prism_policy.models import packed
from prism_policy.models.normalizer import LinearNormalizer
from prism_policy.policies import Policy, build_policy
from prism_policy.policies.base import LossInputs

KINDS: tuple[PolicyKind, ...] = get_args(PolicyKind)
TINY = PolicyConfig(
    encoder=EncoderConfig(fusion="last", refine=False, width=16, num_keypoints=8),
    down_dims=(32, 64),
    step_embed_dim=32,
    horizon=4,
    n_action_steps=2,
)


def tiny_policy(**changes: object) -> Policy:
    torch.manual_seed(0)
    return build_policy(replace(TINY, **changes), schema(48, 3, 2))  # type: ignore[arg-type]


def observation(batch: int) -> dict[str, object]:
    return {
        "images": {"agentview": torch.randint(0, 256, (batch, 2, 48, 48, 3), dtype=torch.uint8)},
        "state": torch.randn(batch, 2, 3),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_two_modes_that_depend_on_the_condition_are_both_learned(kind: PolicyKind) -> None:
    policy = tiny_policy(kind=kind, down_dims=(48,))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(policy.net.parameters(), 3e-3, fused=True)
    cond_dim = 2 * (policy.encoder.out_dim + 3)

    def condition(centre: Tensor) -> Tensor:
        return torch.cat([centre[:, None], torch.zeros(len(centre), cond_dim - 1)], dim=1)

    torch.manual_seed(0)
    updates = 1000 if kind == "meanflow" else 500
    for i in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - i / updates)
        centre = torch.rand(256, generator=generator) - 0.5
        sign = torch.randint(0, 2, (256,), generator=generator) * 2.0 - 1
        actions = (centre + 0.4 * sign)[:, None, None].expand(256, 4, 2)
        loss = policy.chunk_loss(LossInputs(actions, condition(centre), *policy.draw_chunk(256)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value in (-0.3, 0.3):
        with torch.no_grad():
            samples = policy.sample_chunk(policy.draw_noise(500, generator), condition(torch.full((500,), value)))
        offset = samples.mean((1, 2)) - value
        near = (offset.abs() - 0.4).abs() < 0.15
        assert near.float().mean() > 0.9  # the mean would put all of them at offset 0
        assert 0.3 < (offset > 0).float().mean() < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_entry_gives_no_gradient(kind: PolicyKind) -> None:
    policy = tiny_policy(kind=kind)
    actions = torch.randn(6, 4, 2)
    steps = torch.ones(6, 4, dtype=torch.bool)
    steps[2, 1:] = steps[4, 0] = False
    entries = steps[..., None].repeat(1, 1, 2)
    entries[0, 0, 1] = False
    for mask, expected in ((steps, steps[..., None].expand(6, 4, 2)), (entries, entries)):
        output = torch.zeros(6, 4, 2, requires_grad=True)
        policy.net.forward = lambda x, step, cond, output=output: output + 0 * x  # type: ignore[method-assign, misc]
        policy.chunk_loss(LossInputs(actions, torch.zeros(6, 1), *policy.draw_chunk(6), mask)).backward()
        assert output.grad is not None
        assert torch.equal(output.grad != 0, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_known_actions_are_kept_and_the_others_stay_free(kind: PolicyKind) -> None:
    policy, obs = tiny_policy(kind=kind).eval(), observation(2)
    policy.normalizer["action"] = LinearNormalizer.min_max(np.array([[-3, 0], [5, 1.0]]))
    values, where = torch.rand(2, 4, 2), torch.zeros(2, 4, 2, dtype=torch.bool)
    where[:, 1] = True
    free = policy.act(obs, torch.Generator().manual_seed(0))
    out = policy.act(obs, torch.Generator().manual_seed(0), known=(values, where))
    torch.testing.assert_close(out[:, 0], values[:, 1])  # the executed slice begins at the chunk's second step
    assert not torch.allclose(out[:, 0], free[:, 0])
    assert torch.isfinite(out).all()
    with pytest.raises(PrismError, match=r"known: expected actions and a bool mask of shape \(2, 4, 2\)"):
        policy.act(obs, known=(values[:, :3], where))
    values[0, 1, 0] = torch.nan
    with pytest.raises(PrismError, match="known actions hold NaN"):
        policy.act(obs, known=(values, where))


def test_act_returns_the_slice_due_now_in_the_environments_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "reads_half", lambda: False)
    policy = tiny_policy().eval()
    actions = np.random.default_rng(0).uniform([-3, 0], [5, 0.1], (100, 2)).astype(np.float32)
    policy.normalizer["action"] = LinearNormalizer.min_max(actions)
    obs = observation(3)
    chunk = policy.sample(obs, policy.draw_noise(3, torch.Generator().manual_seed(5)))
    low, high = torch.tensor(actions.min(0)), torch.tensor(actions.max(0))
    expected = (low + (chunk + 1) / 2 * (high - low))[:, 1:3]
    torch.testing.assert_close(policy.act(obs, torch.Generator().manual_seed(5)), expected)


def test_same_generator_same_actions() -> None:
    policy, obs = tiny_policy().eval(), observation(1)
    one, two, other = (policy.act(obs, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_saliency_can_flow_back_to_float_images() -> None:
    policy, obs = tiny_policy().eval(), observation(1)
    image = obs["images"]["agentview"].float().requires_grad_()  # type: ignore[index]
    policy.sample({**obs, "images": {"agentview": image}}, policy.draw_noise(1)).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_bad_observations_are_named() -> None:
    policy, obs = tiny_policy().eval(), observation(1)
    with pytest.raises(PrismError, match=r"state: expected \(B, 2, 3\), got \(1, 3, 3\)"):
        policy.act({**obs, "state": torch.zeros(1, 3, 3)})
    with pytest.raises(PrismError, match="NaN"):
        policy.act({**obs, "state": torch.full((1, 2, 3), torch.nan)})


def test_a_chunk_too_short_for_the_executed_slice_is_refused() -> None:
    with pytest.raises(PrismError, match="horizon of at least 9, got 4"):
        tiny_policy(n_action_steps=8)


def test_normalizer_inverts_and_is_safe_for_constant_dimensions() -> None:
    data = np.random.default_rng(0).normal(size=(50, 4)) * [1, 1e3, 1e-3, 0] + [0, 5, 0, 0.7]
    normalizer = LinearNormalizer.min_max(data, keep=[1])
    x = torch.from_numpy(data).float()
    y = normalizer(x)
    torch.testing.assert_close(normalizer.invert(y), x, atol=1e-6, rtol=1e-6)
    assert torch.equal(y[:, 1], x[:, 1])
    assert [y[:, 0].min().item(), y[:, 0].max().item()] == pytest.approx([-1, 1], abs=1e-6)
    assert y[:, 3].abs().max() < 1e-6
    with pytest.raises(PrismError):
        LinearNormalizer.min_max(np.array([[np.nan]]))


def test_a_task_embedding_conditions_the_chunk_and_its_absence_is_named() -> None:
    torch.manual_seed(0)
    policy = build_policy(TINY, schema(48, 3, 2), task_dim=5).eval()
    seen = {**observation(2), "task": torch.randn(2, 5)}
    cond = policy.condition(seen)
    assert cond.shape == (2, 2 * (policy.encoder.out_dim + 3) + TINY.task_embed_dim)
    assert policy.task_encoder is not None
    torch.testing.assert_close(cond[:, -TINY.task_embed_dim :], seen["task"] @ policy.task_encoder.weight.T)
    first, other = (policy.act({**seen, "task": seen["task"] + d}, torch.Generator().manual_seed(0)) for d in (0, 3))
    assert not torch.allclose(first, other)
    with pytest.raises(PrismError, match=r"task is missing; this policy expects an instruction or its vector \(B, 5\)"):
        policy.act(observation(2))
    with pytest.raises(PrismError, match=r"task: expected \(2, 5\), got \(1, 5\)"):
        policy.act({**seen, "task": torch.randn(1, 5)})


def test_images_of_other_frames_than_state_are_named() -> None:
    policy, obs = tiny_policy().eval(), observation(1)
    images = {"agentview": torch.zeros(1, 3, 48, 48, 3, dtype=torch.uint8)}
    with pytest.raises(PrismError, match=r"camera 'agentview': expected \(1, 2, 48, 48, 3\), got \(1, 3, 48, 48, 3\)"):
        policy.act({**obs, "images": images})
    with pytest.raises(PrismError, match="the observation lacks 'state'; it has images"):
        policy.act({"images": images})


def test_an_observation_in_millimetres_is_named() -> None:
    policy, obs = tiny_policy().eval(), observation(1)
    seen = np.random.default_rng(0).uniform([-0.3, -0.3, 0.8], [0.3, 0.3, 1.2], (100, 3))
    policy.normalizer["state"] = LinearNormalizer.min_max(seen)
    policy.act({**obs, "state": torch.tensor([0.2, -0.1, 1.5]).expand(1, 2, 3)})
    with pytest.raises(PrismError, match=r"state, number 2: got 1100, where training saw values around 0\.999502"):
        policy.act({**obs, "state": torch.tensor([0.2, -0.1, 1100]).expand(1, 2, 3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 10, "down_dims": (16, 32, 64)}, "horizon 10 does not suit a U-Net that halves it 2 times"),
        ({"n_obs_steps": 0}, "n_obs_steps: expected at least 1, got 0"),
        (
            {"flow_matching": FlowMatchingConfig(num_inference_steps=0)},
            "flow_matching.num_inference_steps: expected at",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_weight_is_made(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(PrismError, match=message):
        tiny_policy(**changes)


def test_actions_of_another_horizon_are_named() -> None:
    policy = tiny_policy()
    with pytest.raises(PrismError, match=r"actions: expected \(B, 4, 2\), got \(2, 8, 2\)"):
        policy({**observation(2), "actions": torch.zeros(2, 8, 2)})


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        (torch.ones(3), torch.zeros(2), r"action.scale: expected statistics of 2 numbers, got \(3,\)"),
        (torch.ones(2), torch.tensor([0, torch.inf]), "action.offset: statistics hold NaN or infinity"),
        (torch.tensor([1.0, 0]), torch.zeros(2), "action.scale: expected positive numbers, got 0"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(scale: Tensor, offset: Tensor, message: str) -> None:
    with pytest.raises(PrismError, match=message):
        LinearNormalizer(2).load_statistics(scale, offset, "action")
