"""The same gradients from one process in float32 and under autocast, `torch.compile` and several processes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch._inductor.config
import torch.distributed as dist
from torch import Tensor, nn

from prism_policy.config import EncoderConfig, PolicyConfig, PolicyKind
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
    return build_policy(config, {"agentview": (84, 84)}, proprio_dim=3, action_dim=2).train()


def batch_of(rank: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(100 + rank)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 2:] = False
    return {
        "images": {"agentview": torch.randint(0, 256, (4, 2, 84, 84, 3), dtype=torch.uint8, generator=generator)},
        "proprio": torch.randn(4, 2, 3, generator=generator),
        "actions": torch.randn(4, 4, 2, generator=generator).clamp(-1, 1),
        "mask": mask,
    }


def gradients(policy: nn.Module, rank: int = 0) -> dict[str, Tensor]:
    """Of one batch, with crop and noise of a seed that belongs to `rank`."""
    policy.zero_grad()
    torch.manual_seed(200 + rank)
    loss, _ = policy(batch_of(rank))
    loss.backward()
    found = {n.removeprefix("module.").removeprefix("_orig_mod."): p.grad for n, p in policy.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert expected
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@contextmanager
def eager_randomness() -> Iterator[None]:
    """Compiled code draws eager's random numbers."""
    with torch._inductor.config.patch(fallback_random=True):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    found = gradients(policy)
    assert found.keys() == dict(policy.named_parameters()).keys()
    # An attention's softmax does not see what all its keys have in common.
    assert [name for name, g in found.items() if not g.any()] in ([], ["encoder.encoders.agentview.fuse.key.bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_points_the_same_way(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(policy)
    flat, exact = (torch.cat([g.flatten() for g in grads.values()]) for grads in (found, expected))
    assert torch.cosine_similarity(flat, exact, dim=0) > 0.98
    assert float(flat.norm() / exact.norm()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_traced_for_a_compiler_the_gradients_are_eagers(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    with eager_randomness():
        assert_same(gradients(torch.compile(policy, backend="aot_eager")), expected)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_the_gradients_are_eagers(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    with eager_randomness():
        assert_same(gradients(torch.compile(policy)), expected)  # type: ignore[arg-type]


def test_two_processes_have_the_mean_of_their_gradients(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_distributed, (str(tmp_path),), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
    for kind in KINDS:
        policy = small_policy(kind)
        alone = [gradients(policy, rank) for rank in range(PROCESSES)]
        mean = {name: torch.stack([g[name] for g in alone]).mean(0) for name in alone[0]}
        for rank in range(PROCESSES):
            assert_same(torch.load(tmp_path / f"{kind}_{rank}.pt", weights_only=True), mean)


def _distributed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    for kind in KINDS:
        wrapped = nn.parallel.DistributedDataParallel(small_policy(kind))
        torch.save(gradients(wrapped, rank), Path(folder) / f"{kind}_{rank}.pt")
    dist.destroy_process_group()
