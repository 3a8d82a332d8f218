"""DDPM, flow matching and MeanFlow against diffusers, closed forms and finite differences."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from panda import schema
from prism_policy.config.settings import (
    DDPMConfig,
    EncoderConfig,
    FlowMatchingConfig,
    MeanFlowConfig,
    PolicyConfig,
    PolicyKind,
)
from prism_policy.errors import PrismError
from prism_policy.policies import build_policy
from prism_policy.policies.base import LossInputs
from prism_policy.policies.ddpm import DDPMPolicy, alpha_bars
from prism_policy.policies.flow_matching import FlowMatchingPolicy
from prism_policy.policies.meanflow import MeanFlowPolicy

diffusers = pytest.importorskip("diffusers")

Field = Callable[..., Tensor]
"""Of x (B, T, A) and one or several times (B, 1, 1)."""

MEAN, STD = torch.tensor([0.5, -0.3]), torch.tensor([0.2, 0.1])  # of the actions, a Gaussian in each dimension


def policy_of(kind: PolicyKind, **settings: Any) -> Any:
    torch.manual_seed(0)
    configs = {"ddpm": DDPMConfig, "flow_matching": FlowMatchingConfig, "meanflow": MeanFlowConfig}
    config = PolicyConfig(
        kind=kind,
        encoder=EncoderConfig(fusion="last", refine=False, width=8, num_keypoints=4),
        down_dims=(16, 32),
        step_embed_dim=16,
        horizon=4,
        n_action_steps=2,
        **{kind: configs[kind](**settings)},
    )
    return build_policy(config, schema(48, 3, 2))


def plug_in(policy: Any, field: Field) -> None:
    """Put `field` in place of the network; each time becomes (B, 1, 1), or the columns of (B, n) do."""

    def predict(x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        return field(x, *(t[:, None, None] for t in times.reshape(len(x), -1).unbind(1)))

    def predict_at(times: Tensor, cond: Tensor) -> list[Callable[[Tensor], Tensor]]:
        return [lambda x, t=t: predict(x, t.expand(len(x), *t.shape), cond) for t in times]

    policy.predict, policy.predict_at = predict, predict_at


def draws(policy: Any, batch: int) -> Tensor:
    noise: Tensor = policy.draw_noise(batch, torch.Generator().manual_seed(1))
    return noise


def network(x: Tensor, k: Tensor | int) -> Tensor:
    """Stands for a trained network: any smooth function of the chunk and the step."""
    k = torch.as_tensor(k, dtype=x.dtype).reshape(-1, 1, 1)
    return torch.sin(3 * x + 0.1 * k) + 0.3 * x


# DDPM


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
def test_noise_schedule_is_diffusers(schedule: Any) -> None:
    theirs = diffusers.DDPMScheduler(100, beta_start=1e-4, beta_end=2e-2, beta_schedule=schedule)
    ours = alpha_bars(DDPMConfig(beta_schedule=schedule))
    torch.testing.assert_close(ours.float(), theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)
    policy = policy_of("ddpm", beta_schedule=schedule)
    actions, noise, k = torch.randn(5, 4, 2), torch.randn(5, 4, 2), torch.tensor([0, 1, 50, 98, 99])
    torch.testing.assert_close(
        policy.at(k[:, None, None], actions, noise), theirs.add_noise(actions, noise, k), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [100, 25, 10, 1])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_every_step_is_diffusers(sampler: Any, steps: int, clip: bool) -> None:
    policy: DDPMPolicy = policy_of("ddpm", sampler=sampler, num_inference_steps=steps, clip_sample=clip)
    visited = []

    def field(x: Tensor, k: Tensor) -> Tensor:
        visited.append((int(k[0]), x))
        return network(x, k)

    plug_in(policy, field)
    noise = draws(policy, 3)
    ours = policy.sample_chunk(noise, torch.zeros(3, 1))
    name = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}[sampler]
    theirs = getattr(diffusers, name)(100, beta_schedule="squaredcos_cap_v2", clip_sample=clip)
    theirs.set_timesteps(steps)
    later = iter(noise.unbind(1)[1:])
    assert [k for k, _ in visited] == theirs.timesteps.tolist()
    results = [x for _, x in visited[1:]] + [ours]
    for (k, x), result in zip(visited, results, strict=True):
        if sampler == "ddim":
            expected = theirs.step(network(x, k), k, x).prev_sample
        else:
            expected = ancestral_step(theirs, network(x, k), k, x, later)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def ancestral_step(scheduler: Any, eps: Tensor, k: int, x: Tensor, later: Any) -> Tensor:
    """diffusers draws the step's noise itself; hand it ours."""
    module = __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["randn_tensor"])
    original = module.randn_tensor
    module.randn_tensor = lambda *_, **__: next(later)
    try:
        step: Tensor = scheduler.step(eps, k, x).prev_sample
    finally:
        module.randn_tensor = original
    return step


def exact_noise(policy: DDPMPolicy, x: Tensor, k: Tensor) -> Tensor:
    """E[eps | x_k = x] where the actions are N(MEAN, STD^2)."""
    alpha_bar = policy.alpha_bar[k]
    return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_ddpm_with_the_optimal_denoiser_returns_the_gaussian(sampler: Any) -> None:
    """With steps fine enough: 100 of the paper's ancestral steps end 8 to 13% too narrow, which is the scheme's."""
    policy = policy_of("ddpm", sampler=sampler, train_timesteps=1000, num_inference_steps=1000, clip_sample=False)
    plug_in(policy, lambda x, k: exact_noise(policy, x, k))
    samples = policy.sample_chunk(draws(policy, 1000), torch.zeros(1000, 1)).flatten(0, 1)  # (4000, 2)
    torch.testing.assert_close(samples.mean(0), MEAN, atol=0.012, rtol=0)
    torch.testing.assert_close(samples.std(0), STD, atol=0, rtol=0.05)
    assert abs(torch.corrcoef(samples.T)[0, 1]) < 0.06


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 100), ("ddpm", 20), ("ddim", 100), ("ddim", 20)])
def test_at_the_papers_steps_mean_and_width_are_those_of_the_exact_recursion(sampler: str, steps: int) -> None:
    """Each step is affine in x for a Gaussian, so mean and variance can be carried along in float64 by hand."""
    policy = policy_of("ddpm", sampler=sampler, num_inference_steps=steps, clip_sample=False)
    plug_in(policy, lambda x, k: exact_noise(policy, x, k))
    samples = policy.sample_chunk(draws(policy, 4000), torch.zeros(4000, 1)).flatten(0, 1)
    bars = [*alpha_bars(DDPMConfig()).tolist()]
    for d, (m, s) in enumerate(zip(MEAN.tolist(), STD.tolist(), strict=True)):
        mean, variance = 0.0, 1.0
        for k in range(100 - 100 // steps, -1, -100 // steps):
            a, b = bars[k], bars[k - 100 // steps] if k else 1.0
            slope = math.sqrt(1 - a) / (a * s * s + 1 - a)  # eps = slope (x - sqrt(a) m)
            clean = (1 - math.sqrt(1 - a) * slope) / math.sqrt(a)  # x_0 = clean x + (1 - clean sqrt(a)) m
            rest = (1 - clean * math.sqrt(a)) * m
            if sampler == "ddim":
                factor = math.sqrt(b) * clean + math.sqrt(1 - b) * slope
                shift, added = math.sqrt(b) * rest - math.sqrt(1 - b) * slope * math.sqrt(a) * m, 0.0
            else:
                factor = (math.sqrt(b) * (1 - a / b) * clean + math.sqrt(a / b) * (1 - b)) / (1 - a)
                shift, added = math.sqrt(b) * (1 - a / b) * rest / (1 - a), (1 - b) / (1 - a) * (1 - a / b)
            mean, variance = factor * mean + shift, factor**2 * variance + added
        assert samples[:, d].mean() == pytest.approx(mean, abs=0.006)
        assert samples[:, d].std() == pytest.approx(math.sqrt(variance), rel=0.02)


def test_ddpm_with_the_optimal_denoiser_returns_both_modes_of_a_mixture() -> None:
    policy: DDPMPolicy = policy_of("ddpm")
    modes, weights, std = torch.tensor([-0.6, 0.2]), torch.tensor([0.3, 0.7]), 0.05

    def field(x: Tensor, k: Tensor) -> Tensor:
        alpha_bar = policy.alpha_bar[k][..., None]
        spread = alpha_bar * std**2 + 1 - alpha_bar
        away = x.unsqueeze(-1) - alpha_bar.sqrt() * modes  # (B, T, A, 2)
        share = (weights.log() - away.square() / (2 * spread)).softmax(-1)
        return ((1 - alpha_bar).sqrt() * share * away / spread).sum(-1)

    plug_in(policy, field)
    samples = policy.sample_chunk(draws(policy, 1000), torch.zeros(1000, 1)).flatten()  # 8000 of one dimension
    near = [(samples - mode).abs() < 4 * std for mode in modes]
    assert near[0].float().mean() == pytest.approx(0.3, abs=0.03)
    assert near[1].float().mean() == pytest.approx(0.7, abs=0.03)


def test_more_steps_than_were_trained_are_refused() -> None:
    with pytest.raises(PrismError, match="num_inference_steps: expected 1 to train_timesteps 100, got 101"):
        policy_of("ddpm", num_inference_steps=101)


# Flow matching


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[tau - x_0 | x_t] for tau ~ N(MEAN, STD^2), x_0 ~ N(0, 1), x_t = (1 - t) x_0 + t tau."""
    spread = (1 - t) ** 2 + (t * STD.to(x)) ** 2
    return MEAN.to(x) + (t * STD.to(x) ** 2 - (1 - t)) / spread * (x - t * MEAN.to(x))


@pytest.mark.parametrize(("solver", "steps"), [("euler", 200), ("midpoint", 40)])
def test_flow_matching_returns_the_gaussian_given_its_exact_velocity(solver: Any, steps: int) -> None:
    policy: FlowMatchingPolicy = policy_of("flow_matching", solver=solver, num_inference_steps=steps)
    plug_in(policy, gaussian_velocity)
    noise = draws(policy, 2000)
    samples = policy.sample_chunk(noise, torch.zeros(2000, 1))
    # The flow of a Gaussian is known: x_1 = MEAN + STD x_0.
    torch.testing.assert_close(samples, MEAN + STD * noise[:, 0], atol=0.02, rtol=0)


def test_halving_the_step_halves_eulers_error_and_quarters_midpoints_at_least() -> None:
    def error(solver: str, steps: int) -> float:
        policy: FlowMatchingPolicy = policy_of("flow_matching", solver=solver, num_inference_steps=steps).double()
        plug_in(policy, lambda x, t: gaussian_velocity(x, t.double()))
        noise = draws(policy, 200).double()
        exact = MEAN.double() + STD.double() * noise[:, 0]
        return float((policy.sample_chunk(noise, torch.zeros(200, 1)) - exact).abs().mean())

    assert error("euler", 40) / error("euler", 80) == pytest.approx(2, rel=0.2)
    assert error("midpoint", 40) / error("midpoint", 80) > 3.5


# MeanFlow


def gaussian_average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """(z_t - z_r) / h along the flow of a Gaussian, whose quantiles move on straight lines of its marginal's width."""
    r, mean, std = t - h, MEAN.to(z), STD.to(z)
    width_t, width_r = ((((1 - s) * std) ** 2 + s**2).sqrt() for s in (t, r))
    z_r = (1 - r) * mean + width_r / width_t * (z - (1 - t) * mean)
    return (z - z_r) / h


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_meanflow_returns_the_gaussian_in_one_step_or_many(steps: int) -> None:
    policy: MeanFlowPolicy = policy_of("meanflow", num_inference_steps=steps)
    plug_in(policy, gaussian_average_velocity)
    noise = draws(policy, 500)
    torch.testing.assert_close(
        policy.sample_chunk(noise, torch.zeros(500, 1)), MEAN + STD * noise[:, 0], atol=1e-5, rtol=1e-4
    )


def test_the_meanflow_identity_holds_for_a_field_known_in_closed_form() -> None:
    """Eq. 9: with the marginal velocity at z, prediction and target (Eq. 12) are equal."""
    policy: MeanFlowPolicy = policy_of("meanflow").double()
    plug_in(policy, gaussian_average_velocity)
    z, t = torch.randn(20, 4, 2).double(), torch.rand(20).double() * 0.8 + 0.2
    r = t * torch.rand(20).double() * 0.9
    v = -gaussian_velocity(z, (1 - t)[:, None, None])  # the same path with time reversed
    predicted, target = policy.target(z, v, t, r, torch.zeros(20, 1))
    torch.testing.assert_close(predicted, target, atol=1e-9, rtol=1e-9)


def test_the_derivative_along_the_path_is_that_of_finite_differences() -> None:
    policy: MeanFlowPolicy = policy_of("meanflow", time_scale=10.0).double()
    z, v = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 2).double()
    t, r = torch.tensor([0.9, 0.5, 0.3]).double(), torch.tensor([0.1, 0.4, 0.3]).double()
    cond = torch.randn(3, 2 * (policy.encoder.out_dim + 3)).double()
    predicted, target = policy.target(z, v, t, r, cond)

    def u(d: float) -> Tensor:
        return policy.predict(z + d * v, torch.stack([t + d, t + d - r], 1), cond)

    d = 1e-5
    change = (u(d) - u(-d)) / (2 * d)
    torch.testing.assert_close(predicted, u(0.0))
    torch.testing.assert_close(target, v - (t - r)[:, None, None] * change, atol=1e-6, rtol=1e-6)
    assert not target.requires_grad
    assert predicted.requires_grad


def test_with_r_equal_t_the_gradient_is_flow_matchings() -> None:
    policy: MeanFlowPolicy = policy_of("meanflow", equal_ratio=1.0, norm_power=0.0)
    actions, cond = torch.rand(8, 4, 2), torch.randn(8, 2 * (policy.encoder.out_dim + 3))
    e, times = policy.draw_chunk(8)
    policy.chunk_loss(LossInputs(actions, cond, e, times)).backward()
    got = {n: p.grad.clone() for n, p in policy.net.named_parameters() if p.grad is not None}
    policy.zero_grad()
    t = times[:, 0]
    z = (1 - t[:, None, None]) * actions + t[:, None, None] * e
    scaled = torch.stack([t, torch.zeros(8)], 1) * policy.config.meanflow.time_scale
    ((policy.net(z, scaled, cond) - (e - actions)) ** 2).sum((1, 2)).mean().backward()
    for name, p in policy.net.named_parameters():
        torch.testing.assert_close(got[name], p.grad, atol=1e-4, rtol=1e-3)


def test_adaptive_weight_is_eq_13() -> None:
    policy: MeanFlowPolicy = policy_of("meanflow")
    policy.target = lambda z, v, t, r, cond: (prediction, torch.zeros_like(z))  # type: ignore[method-assign]
    prediction = torch.randn(5, 4, 2, requires_grad=True)
    loss = policy.chunk_loss(LossInputs(torch.zeros(5, 4, 2), torch.zeros(5, 1), *policy.draw_chunk(5)))
    loss.backward()
    delta = prediction.detach().double().square().sum((1, 2))
    assert float(loss.detach()) == pytest.approx(float((delta / (delta + 1e-3) ** 0.75).mean()), rel=1e-5)
    weight = (delta + 1e-3) ** -0.75 / 5  # no gradient through the weight
    expected = 2 * weight[:, None, None] * prediction.detach()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", ["clamp", "swap"])
def test_times_are_logit_normal_ordered_and_equal_as_often_as_said(order: Any) -> None:
    policy: MeanFlowPolicy = policy_of("meanflow", order=order)
    t, r = policy.draw_times(40_000, torch.Generator().manual_seed(0)).unbind(1)
    assert (r <= t).all()
    # r is clamped to t, and then equal, where its own draw is above t's: N(-3.4, 1.6 sqrt 2) > 0 in 6.6% of the rest
    above = 0.5 * math.erfc(3.4 / (1.6 * math.sqrt(2)) / math.sqrt(2))
    expected = 0.75 + 0.25 * (above if order == "clamp" else 0)
    assert (r == t).float().mean() == pytest.approx(expected, abs=0.01)
    if order == "clamp":
        logit = torch.logit(t.double())
        assert logit.mean() == pytest.approx(-0.6, abs=0.03)
        assert logit.std() == pytest.approx(1.6, abs=0.03)
