"""The same gradients from one process in float32 and under autocast, `torch.compile` and several processes."""

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from panda import schema
from prism_policy.config.settings import EncoderConfig, PolicyConfig, PolicyKind
from prism_policy.policies import Policy, build_policy

KINDS: tuple[PolicyKind, ...] = get_args(PolicyKind)
PROCESSES = 2


def small_policy(kind: PolicyKind) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(
        kind=kind,
        encoder=EncoderConfig(width=16, num_keypoints=8, attention_dim=16, out_dim=16),
        down_dims=(32, 64),
        step_embed_dim=32,
        horizon=4,
        n_action_steps=2,
    )
    return build_policy(config, schema(84, 3, 2)).train()


def batch_of(policy: Policy) -> dict[str, Any]:
    """A batch for all processes together, with masks of unequal size and all that is random."""
    generator = torch.Generator().manual_seed(100)
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[0, 2:] = mask[1] = False
    return {
        "images": {"agentview": torch.randint(0, 256, (8, 2, 84, 84, 3), dtype=torch.uint8, generator=generator)},
        "state": torch.randn(8, 2, 3, generator=generator),
        "actions": torch.randn(8, 4, 2, generator=generator).clamp(-1, 1),
        "mask": mask,
        "mask_share": mask.float().mean(),
        "draws": policy.draw(8, generator),
    }


def rows_of(batch: Any, rows: slice) -> Any:
    """One process's share of the batch."""
    if isinstance(batch, dict):
        return {key: rows_of(value, rows) for key, value in batch.items()}
    return batch[rows] if batch.ndim else batch


def gradients(policy: nn.Module, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Of one batch's loss, or of that of some of its rows."""
    policy.zero_grad()
    loss = policy(rows_of(batch_of(getattr(policy, "module", policy)), rows))
    loss.backward()
    actual = {n.removeprefix("module.").removeprefix("_orig_mod."): p.grad for n, p in policy.named_parameters()}
    return {name: grad.clone() for name, grad in actual.items() if grad is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert expected
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    actual = gradients(policy)
    assert actual.keys() == dict(policy.named_parameters()).keys()
    # An attention's softmax does not see what all its keys have in common.
    assert [name for name, g in actual.items() if not g.any()] in ([], ["encoder.encoders.agentview.fuse.key.bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_points_the_same_way(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(policy)
    flat, exact = (torch.cat([g.flatten() for g in grads.values()]) for grads in (actual, expected))
    assert torch.cosine_similarity(flat, exact, dim=0) > 0.98
    assert float(flat.norm() / exact.norm()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_traced_for_a_compiler_the_gradients_are_eagers(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    assert_same(gradients(torch.compile(policy, backend="aot_eager")), expected)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_the_gradients_are_eagers(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    assert_same(gradients(torch.compile(policy)), expected)  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_distributed, (str(tmp_path),), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
    for kind in KINDS:
        alone = gradients(small_policy(kind))
        for rank in range(PROCESSES):
            assert_same(torch.load(tmp_path / f"{kind}_{rank}.pt", weights_only=True), alone)


def _distributed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    for kind in KINDS:
        wrapped = nn.parallel.DistributedDataParallel(small_policy(kind))
        rows = slice(4 * rank, 4 * rank + 4)
        torch.save(gradients(wrapped, rows), Path(folder) / f"{kind}_{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "kind", ["flow_matching", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ddpm", "meanflow"))]
)
def test_several_noises_of_a_window_give_the_mean_of_each_ones_gradients(kind: PolicyKind) -> None:
    policy = small_policy(kind).double()
    batch = {name: x.double() if name == "actions" or name == "state" else x for name, x in batch_of(policy).items()}
    draws = policy.draw(8, torch.Generator().manual_seed(3), copies=3)
    draws = {name: x.double() if x.is_floating_point() else x for name, x in draws.items()}
    assert draws["noise"].shape == (8, 3, 4, 2)

    def gradients_with(of_chunk: slice) -> dict[str, Tensor]:
        policy.zero_grad()
        chosen = {name: x[:, of_chunk] if name in ("noise", "times") else x for name, x in draws.items()}
        policy({**batch, "draws": chosen}).backward()
        return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    together = gradients_with(slice(None))
    each = [gradients_with(slice(i, i + 1)) for i in range(3)]
    for name, gradient in together.items():
        expected = sum(one[name] for one in each) / 3
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
