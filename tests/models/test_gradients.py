"""The same gradients from one process in float32 and under autocast, `torch.compile` and several processes."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from panda import schema
from prism_policy.config.settings import EncoderConfig, PolicyConfig, PolicyKind
from prism_policy.policies import Policy, build_policy
from prism_policy.training.compiled import compiled
from prism_policy.training.distributed import ProcessGroup

KINDS: tuple[PolicyKind, ...] = get_args(PolicyKind)
PROCESSES = 2


def small_policy(kind: PolicyKind, cameras: dict[str, tuple[int, int]] | None = None) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(
        kind=kind,
        encoder=EncoderConfig(width=16, num_keypoints=8, attention_dim=16, out_dim=16),
        down_dims=(32, 64),
        step_embed_dim=32,
        horizon=4,
        n_action_steps=2,
    )
    robot = schema(84, 3, 2)
    return build_policy(config, replace(robot, cameras=cameras or robot.cameras)).train()


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


def traced(policy: Policy, backend: Any = "aot_eager") -> Policy:
    """As `train` compiles it, in the same parts, by another compiler; what it cannot follow is an error."""
    compile_ = torch.compile

    def trace(function: Any, dynamic: bool, options: dict[str, Any]) -> Any:
        return compile_(function, dynamic=dynamic, backend=backend, fullgraph=True)

    torch.compiler.reset()
    with mock.patch("torch.compile", trace):
        return compiled(policy)


@pytest.mark.parametrize(
    "kind", ["flow_matching", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ddpm", "meanflow"))]
)
def test_traced_for_a_compiler_the_gradients_are_eagers(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    policy.zero_grad()
    assert_same(gradients(traced(policy)), expected)
    parts = [module for module in policy.modules() if module._compiled_call_impl is not None]
    assert not parts, "validation and rollouts would compile it again, for their shapes and modes"


@pytest.mark.parametrize(("right", "graphs"), [((84, 84), 2), ((84, 100), 3)])
def test_cameras_of_one_size_are_compiled_once(right: tuple[int, int], graphs: int) -> None:
    seen: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph)
        return graph

    sizes = {"agentview": (84, 84), "wrist": right}
    policy = small_policy("flow_matching", sizes)
    batch = batch_of(policy)
    batch["images"]["wrist"] = torch.zeros(8, 2, *right, 3, dtype=torch.uint8)
    traced(policy, count)(batch)
    assert len(seen) == graphs  # the last is the loss
    values = [
        node.meta["example_value"] for graph in seen for node in graph.graph.nodes if "example_value" in node.meta
    ]
    assert len(values) > 100
    # A size that a graph leaves open costs speed.
    assert all(isinstance(n, int) for x in values if isinstance(x, Tensor) for n in x.shape)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_the_gradients_are_eagers(kind: PolicyKind) -> None:
    policy = small_policy(kind)
    expected = gradients(policy)
    policy.zero_grad()
    assert_same(gradients(compiled(policy)), expected)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_distributed, (str(tmp_path),), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
    for kind in KINDS:
        alone = gradients(small_policy(kind))
        for rank in range(PROCESSES):
            assert_same(load_file(tmp_path / f"{kind}_{rank}.safetensors"), alone)
            assert_same(load_file(tmp_path / f"{kind}_{rank}_compiled.safetensors"), alone)


def _distributed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    group, rows, cpu = ProcessGroup(rank, PROCESSES, rank), slice(4 * rank, 4 * rank + 4), torch.device("cpu")
    for kind in KINDS:
        policy = small_policy(kind)
        save_file(gradients(group.wrap(policy, cpu), rows), Path(folder) / f"{kind}_{rank}.safetensors")
        policy.zero_grad()
        averaged = gradients(group.wrap(traced(policy), cpu), rows)
        save_file(averaged, Path(folder) / f"{kind}_{rank}_compiled.safetensors")
    del policy, averaged
    gc.collect()  # what holds the group, which may abort at its end else
    dist.destroy_process_group()


def test_no_buffer_is_sent_with_an_update() -> None:
    """They are constants; sending them would hold each forward pass up."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=PROCESSES)
    try:
        policy = small_policy("flow_matching")
        wrapped = ProcessGroup(1, PROCESSES, 1).wrap(policy, torch.device("cpu"))
        with mock.patch.object(dist, "_broadcast_coalesced") as sends, torch.no_grad():
            wrapped(batch_of(policy))
            assert not sends.called
            nn.parallel.DistributedDataParallel(policy, init_sync=False)(batch_of(policy))
            assert sends.called
    finally:
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
