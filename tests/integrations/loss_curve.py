"""DATASET OUT: the same twelve updates by `prism train`'s Trainer and by lerobot-train, the losses of each as JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import lerobot.scripts.lerobot_train as script
import lerobot_policy_prism.modeling_prism as plugin

from prism_policy.config import presets
from prism_policy.config.settings import TaskConfig
from prism_policy.data.frames import Frames
from prism_policy.data.lerobot import LeRobotSource
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.training.trainer import Trainer

dataset, out = map(Path, sys.argv[1:])
STEPS, BATCH = 12, 8
source = LeRobotSource(dataset)
frames = Frames.of(list(source.episodes(source.names, source.schema)), source.schema)
windows = Windows(frames, 16, 2, 8)
base = presets.nano(policy="flow_matching", encoder_name="sspool@2")
policy = replace(base.policy, down_dims=(16, 32), step_embed_dim=16)
settings = replace(base.train, steps=STEPS, batch_size=BATCH, log_every=1, valid_every=0)
task = TaskConfig("recorded", tuple(source.schema.cameras))
config = replace(base, task=task, dataset=str(dataset), policy=policy, train=settings)

ours: list[float] = []
Trainer(out / "run", config, windows, lambda _, line: ours.append(line["loss"])).train()
(out / "prism.json").write_text(json.dumps(ours))

newest, groups = windows.observed[:, -1].tolist(), windows.groups("task")
order = [newest[i] for step in range(STEPS) for i in batch_indices(step, BATCH, groups, config.seed).tolist()]
script.EpisodeAwareSampler.__iter__ = lambda self: iter(order)
script.EpisodeAwareSampler.__len__ = lambda self: len(order)
forward = plugin.PrismPolicy.forward
theirs: list[float] = []


def recorded(self: plugin.PrismPolicy, batch: dict) -> tuple:
    loss, about = forward(self, batch)
    theirs.append(loss.item())
    return loss, about


plugin.PrismPolicy.forward = recorded
sys.argv = [
    "lerobot-train", "--policy.discover_packages_path=lerobot_policy_prism", "--dataset.repo_id=local/made",
    f"--dataset.root={dataset}", f"--output_dir={out / 'lerobot'}", "--policy.type=prism", "--policy.size=nano",
    "--policy.encoder.name=sspool@2", "--policy.down_dims=[16,32]", "--policy.step_embed_dim=16", "--policy.device=cpu",
    "--policy.push_to_hub=false", "--wandb.enable=false", "--num_workers=0", f"--steps={STEPS}",
    f"--batch_size={BATCH}", "--save_checkpoint=false", f"--seed={config.seed}",
]  # fmt: skip
script.main()
(out / "lerobot.json").write_text(json.dumps(theirs))
