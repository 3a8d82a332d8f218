"""Flow matching against distributions known in closed form, and the policy's contract."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from prism_policy.config import EncoderConfig, PolicyConfig
from prism_policy.data.normalizer import LinearNormalizer
from prism_policy.errors import PrismError
from prism_policy.policies import Policy, build_policy

TINY = PolicyConfig(
    encoder=EncoderConfig(fusion="last", refine=False, width=16, num_keypoints=8),
    down_dims=(32, 64),
    step_embed_dim=32,
    horizon=4,
    n_action_steps=2,
)


def tiny_policy(**changes: object) -> Policy:
    torch.manual_seed(0)
    return build_policy(replace(TINY, **changes), {"agentview": (48, 48)}, proprio_dim=3, action_dim=2)  # type: ignore[arg-type]


def observation(batch: int) -> dict[str, object]:
    return {
        "images": {"agentview": torch.randint(0, 256, (batch, 2, 48, 48, 3), dtype=torch.uint8)},
        "proprio": torch.randn(batch, 2, 3),
    }


def test_euler_sampler_returns_a_gaussian_given_its_exact_velocity() -> None:
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.4, 0.1])
    policy = tiny_policy(num_inference_steps=200)

    def velocity(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        # E[tau - x_0 | x_t] for tau ~ N(mean, std^2), x_0 ~ N(0, 1), x_t = (1 - t) x_0 + t tau
        t = t[:, None, None]
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    policy.velocity = velocity  # type: ignore[assignment, method-assign]
    noise = torch.randn(4000, 4, 2, generator=torch.Generator().manual_seed(1))
    samples = policy.sample_chunk(noise, torch.zeros(4000, 1))
    torch.testing.assert_close(samples.mean((0, 1)), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(samples.std((0, 1)), std, atol=0.02, rtol=0)


def test_two_modes_that_depend_on_the_condition_are_both_learned() -> None:
    policy = tiny_policy(num_inference_steps=10)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(policy.net.parameters(), 3e-3)
    cond_dim = 2 * (policy.encoder.out_dim + 3)

    def condition(centre: Tensor) -> Tensor:
        return torch.cat([centre[:, None], torch.zeros(len(centre), cond_dim - 1)], dim=1)

    torch.manual_seed(0)
    for _ in range(500):
        centre = torch.rand(256, generator=generator) - 0.5
        sign = torch.randint(0, 2, (256,), generator=generator) * 2.0 - 1
        actions = (centre + 0.4 * sign)[:, None, None].expand(256, 4, 2)
        loss = policy.chunk_loss(actions, condition(centre))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value in (-0.3, 0.3):
        with torch.no_grad():
            centre = torch.full((500,), value)
            samples = policy.sample_chunk(torch.randn(500, 4, 2, generator=generator), condition(centre)).mean((1, 2))
        offset = samples - value
        near = (offset.abs() - 0.4).abs() < 0.15
        assert near.float().mean() > 0.9  # regression to the mean would put all of them at offset 0
        assert 0.3 < (offset > 0).float().mean() < 0.7


def test_a_masked_step_gives_no_gradient() -> None:
    policy = tiny_policy()
    actions = torch.randn(6, 4, 2)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[2, 1:] = mask[4, 0] = False
    velocity = torch.zeros(6, 4, 2, requires_grad=True)
    policy.velocity = lambda x, t, cond: velocity  # type: ignore[assignment, method-assign]
    policy.chunk_loss(actions, torch.zeros(6, 1), mask).backward()
    assert velocity.grad is not None
    assert torch.equal(velocity.grad.abs().sum(-1) > 0, mask)


def test_act_returns_the_slice_due_now_in_the_environments_units() -> None:
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
    with pytest.raises(PrismError, match=r"proprio: expected \(B, 2, 3\), got \(1, 3, 3\)"):
        policy.act({**obs, "proprio": torch.zeros(1, 3, 3)})
    with pytest.raises(PrismError, match="NaN"):
        policy.act({**obs, "proprio": torch.full((1, 2, 3), torch.nan)})


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
    policy = build_policy(TINY, {"agentview": (48, 48)}, proprio_dim=3, action_dim=2, task_dim=5).eval()
    seen = {**observation(2), "task": torch.randn(2, 5)}
    cond = policy.condition(seen)
    assert cond.shape == (2, 2 * (policy.encoder.out_dim + 3) + 5)
    torch.testing.assert_close(cond[:, -5:], seen["task"])
    first, other = (policy.act({**seen, "task": seen["task"] + d}, torch.Generator().manual_seed(0)) for d in (0, 3))
    assert not torch.allclose(first, other)
    with pytest.raises(PrismError, match=r"task is missing; this policy expects an embedding \(B, 5\)"):
        policy.act(observation(2))
    with pytest.raises(PrismError, match=r"task: expected \(2, 5\), got \(1, 5\)"):
        policy.act({**seen, "task": torch.randn(1, 5)})
