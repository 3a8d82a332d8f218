"""Metrics of a training for TensorBoard and Weights & Biases, beside metrics.jsonl."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prism_policy.config.settings import RunConfig, Tracker
from prism_policy.errors import PrismError
from prism_policy.training.trainer import OnUpdate


def check_trackers(names: Sequence[Tracker]) -> None:
    """Require the packages of the trackers."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise PrismError(f"--track {name} needs the package {name}: pip install prism-policy[track]")


@contextmanager
def trackers(names: Sequence[Tracker], folder: Path, config: RunConfig) -> Iterator[list[OnUpdate]]:
    """Functions to call with the metrics of each update that is logged; closed at the end of the block.

    TensorBoard's files lie in the run folder's `tensorboard/`. A run that is resumed goes on in the same W&B run, which
    is in the project `prism-policy` (or $WANDB_PROJECT); offline where $WANDB_MODE says so.
    """
    with ExitStack() as stack:
        calls: list[OnUpdate] = []
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))
            stack.callback(writer.close)

            def to_tensorboard(done: int, line: dict[str, float]) -> None:
                for name, value in line.items():
                    if name != "step":
                        writer.add_scalar(name, value, done)
                writer.flush()

            calls.append(to_tensorboard)
        if "wandb" in names:
            import wandb

            project = os.environ.get("WANDB_PROJECT", "prism-policy")
            run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            identity = {"project": project, "id": run_id, "name": folder.name}
            run = wandb.init(**identity, config=dataclasses.asdict(config), dir=str(folder), resume="allow")
            stack.callback(run.finish)
            calls.append(lambda done, line: run.log(line, step=done))
        yield calls
