"""The paper's settings, read back against its tables (typed from arXiv:2606.15232, Tables 8 to 12)."""

from typing import get_args

import pytest

from prism_policy.config import presets
from prism_policy.config.settings import PolicyKind
from prism_policy.tasks import probe_tasks


@pytest.mark.parametrize("policy", get_args(PolicyKind))
@pytest.mark.parametrize("task", probe_tasks())
def test_the_papers_run_has_the_values_of_its_tables(task: str, policy: PolicyKind) -> None:
    run = presets.paper(task, policy, "sspool")
    table_8 = {"batch_size": 512, "steps": 200 * 250, "lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8}
    table_8 |= {"weight_decay": 1e-6, "warmup_steps": 500}
    assert {name: getattr(run.train, name) for name in table_8} == table_8
    assert (run.policy.horizon, run.policy.n_obs_steps, run.policy.n_action_steps) == (16, 2, 8)  # Table 9
    assert run.task.render.resolution == 84
    encoder = run.policy.encoder  # Table 10
    assert (encoder.depth, encoder.norm, encoder.share_cameras) == (18, "group", False)
    assert encoder.crop < 1
    table_11 = {"step_embed_dim": 128, "down_dims": (256, 512, 1024), "kernel_size": 5, "n_groups": 8}
    assert {name: getattr(run.policy, name) for name in table_11} == table_11


def test_the_three_policies_have_the_values_of_table_12() -> None:
    ddpm = presets.paper(policy="ddpm").policy.ddpm
    assert (ddpm.train_timesteps, ddpm.num_inference_steps, ddpm.sampler) == (100, 100, "ddpm")
    assert (ddpm.beta_schedule, ddpm.beta_start, ddpm.beta_end) == ("squaredcos_cap_v2", 1e-4, 2e-2)
    assert ddpm.clip_sample
    flow = presets.paper(policy="flow_matching").policy.flow_matching
    assert (flow.num_inference_steps, flow.solver) == (10, "euler")
    run = presets.paper(policy="meanflow")
    mean = run.policy.meanflow
    assert (mean.norm_power, mean.norm_eps, mean.num_inference_steps) == (0.75, 1e-3, 1)
    assert (mean.t_mean, mean.t_std, mean.r_mean, mean.r_std) == (-0.6, 1.6, -4.0, 1.6)
    assert mean.equal_ratio == 0.75
    assert (run.train.ema_power, run.train.ema_max_decay) == (None, 0.9999)


def test_toolhang_is_seen_from_the_side_and_given_more_time() -> None:
    assert presets.paper("tool_hang").task.cameras == ("sideview", "robot0_eye_in_hand")
    assert (presets.paper("tool_hang").task.max_steps, presets.paper("can").task.max_steps) == (700, 400)
