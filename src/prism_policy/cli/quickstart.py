"""The main job from one command: demonstrations, policy, measured success, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prism_policy.config.settings import RunConfig
from prism_policy.data.frames import open_frames
from prism_policy.data.windows import Windows
from prism_policy.demos.cache import default_cache_dir
from prism_policy.demos.collect import collect, render_demos
from prism_policy.reports.evaluate import Asked, Ledger, Plan, measure
from prism_policy.run_folder import open_run
from prism_policy.training.trainer import Trainer
from prism_policy.utils.memory import PeakMemory
from prism_policy.utils.progress import Bar


def quickstart(folder: Path, config: RunConfig, preset: str) -> dict[str, Any]:
    """Run (or go on with) the whole chain in `folder`; returns the summary, which is also results/summary.json.

    Args:
        preset: name of the sizes, for the summary.

    Raises:
        PrismError: bad input, see each stage.
    """
    open_run(folder, config)
    ledger = Ledger(folder / "results" / "ledger.json")
    with PeakMemory() as memory:
        with ledger.stage("demos", memory), Bar("Demonstrations", config.demos.num_demos) as bar:
            states = collect(config.task, config.demos, progress=bar.count)
        with ledger.stage("render", memory), Bar("Rendering", config.demos.num_demos) as bar:
            images = render_demos(states, config.task, progress=bar.count)
        with ledger.stage("train", memory):
            if not (folder / "weights.safetensors").exists():
                with Bar("Training", config.train.steps) as bar:
                    frames = open_frames(images, config.task.cameras, default_cache_dir(), config.task.action_mode)
                    shape = config.policy
                    windows = Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps)
                    Trainer(folder, config, windows, bar.train).train()
                    del frames, windows
    return measure([Plan(folder, config, ("last",), (config.evaluate.seed,), preset)], Asked())[0]
