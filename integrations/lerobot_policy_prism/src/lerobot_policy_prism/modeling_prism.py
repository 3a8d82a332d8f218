"""The policy behind LeRobot's interface: its batches in, its action chunks out, the network this library's own."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from prism_policy.data.lerobot.meta import cameras_of, fields_of, read_info
from prism_policy.data.schema import Part, Schema
from prism_policy.errors import PrismError
from prism_policy.policies import Policy, build_policy
from prism_policy.policies.base import Known
from prism_policy.policies.instructions import Instructions
from prism_policy.training.trainer import fit_normalizer, update_seed
from prism_policy.utils.images import Resize
from safetensors.torch import load_file
from torch import Tensor, nn

from lerobot_policy_prism.configuration_prism import PrismConfig
from lerobot_policy_prism.disturbances import Disturbances

RGB = 3


class PrismPolicy(PreTrainedPolicy):
    """A policy of this library as LeRobot trains, saves, loads and rolls it out.

    `model` is what the optimiser changes, `ema` its moving average, which acts. Both own their normalizer: batches and
    actions are in the robot's units, and LeRobot's processors leave them alone.
    """

    config_class = PrismConfig
    name = "prism"
    updates: Tensor

    def __init__(
        self,
        config: PrismConfig,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        **_: Any,
    ) -> None:
        """As LeRobot calls it; `dataset_meta` (LeRobotDatasetMetadata) says what the robot shows and takes.

        Raises:
            ValueError: no camera or no action.
            PrismError: settings that exclude one another.
        """
        super().__init__(config)
        config.validate_features()
        self.camera_keys, self.state_keys = camera_keys(config), state_keys(config)
        if config.robot is None:
            config.robot = robot_of(config, dataset_meta)
        config.action_feature_names = flat_names(config.action_feature_names, config.robot.action_dim)
        if not config.instructions and dataset_meta is not None:
            tasks = tuple(map(str, dataset_meta.tasks.index))
            config.instructions = tasks if len(tasks) > 1 or config.task_input == "language" else ()
        instructions = Instructions(config.instructions, config.task_input) if config.instructions else None
        with torch.random.fork_rng(devices=[]):  # the weights that `prism train` starts with at this seed
            torch.manual_seed(torch.initial_seed())
            self.model: Policy = build_policy(config.policy_config(), config.robot, instructions=instructions)
        if dataset_stats is not None:
            self._fit(dataset_stats)
        self.ema: Policy | None = None
        if config.use_ema:
            self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.disturbances = None if dataset_meta is None else Disturbances.read(dataset_meta)
        self.resize = config.resize()
        self.reset()

    def _fit(self, stats: Mapping[str, Mapping[str, Any]]) -> None:
        """Fit the normalizers to the lowest and highest numbers of a dataset."""
        for name, parts, keys in (
            ("state", self.model.schema.state, self.state_keys),
            ("action", self.model.schema.action, [ACTION]),
        ):
            ends = [np.concatenate([np.ravel(stats[key][end]) for key in keys]) for end in ("min", "max")]
            self.model.normalizer[name] = fit_normalizer(parts, np.stack(ends).astype(np.float32))

    @property
    def acting(self) -> Policy:
        """What acts: the averaged weights, where there are any."""
        return self.model if self.ema is None else self.ema

    def train(self, mode: bool = True) -> PrismPolicy:
        """As torch's; the average is never trained."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        return self

    def get_optim_params(self) -> Iterable[nn.Parameter]:
        """The weights that are trained."""
        return self.model.parameters()

    @torch.no_grad()
    def update(self) -> None:
        """One step of the moving average; LeRobot calls it after each of the optimiser's."""
        if self.ema is not None:
            decay = self.config.ema_decay(int(self.updates))
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
            for average, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)
        self.updates += 1

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch of windows; in evaluation mode that of the averaged weights, with centred crops."""
        actions: Tensor = batch[ACTION]
        inputs = {**self._observation(batch), "actions": actions}
        if self.disturbances is not None:
            learnable = self.disturbances.learnable(batch["index"], actions, self.config.n_obs_steps)
            inputs["actions"], inputs["mask"] = learnable
            inputs["mask_share"] = learnable[1].float().mean()  # as the Trainer has it, to the bit
        if not self.training:
            return self.acting(inputs), {}
        draws = self.model.draw(len(actions), self._generator(), training=True)
        return self.model({**inputs, "draws": {name: x.to(actions.device) for name, x in draws.items()}}), {}

    def _generator(self) -> torch.Generator:
        """Of an update's noise and crops: of the seed, the process and the update alone, so a resumed training ends as
        one that was not stopped, and one process draws what `prism train` does at this seed.
        """
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return torch.Generator().manual_seed(update_seed(torch.initial_seed() + rank, int(self.updates)))

    def reset(self) -> None:
        """Forget the episode."""
        self._frames: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._actions: deque[Tensor] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None) -> Tensor:
        """The action (B, A) to execute now, given the newest frames; every `n_action_steps` a new chunk is drawn."""
        keys = [*self.camera_keys.values(), *self.state_keys]
        frame = {key: batch[key] for key in keys}
        self._frames.extend([frame] * (1 if self._frames else self.config.n_obs_steps))
        if not self._actions:
            history = {key: torch.stack([frame[key] for frame in self._frames], 1) for key in keys}
            chunk = self.predict_action_chunk({**batch, **history}, noise)
            self._actions.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._actions.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
    ) -> Tensor:
        """The actions (B, horizon - n_obs_steps + 1, A) from now on, in the robot's units.

        Args:
            batch: the last frames (B, n_obs_steps, ...); or the newest alone (B, ...), which then stands for all.
            noise: (B, num_draws, horizon, A), see `Policy.draw_noise`; by default drawn from torch's generator.
            inference_delay: steps of what is left that will have been executed when the new chunk is there.
            prev_chunk_left_over: what is left of the chunk before, (T, A) or (B, T, A), as this method returned it.
                Its first `inference_delay` actions are kept, and the rest is drawn to go with them.
        """
        policy = self.acting
        observation = self._observation(batch)
        count = len(observation["state"])
        draws = policy.draw_sampling(count)
        if noise is not None:
            draws["noise"] = noise.to(policy.device)
        known = self._known(prev_chunk_left_over, inference_delay or 0, count)
        return policy.predict_chunk(observation, known=known, draws=draws)[:, self.config.n_obs_steps - 1 :]

    def supports_rtc(self) -> bool:
        """Whether what is left of a chunk shapes the next one: not with a single step, which has no time for it."""
        sampler = getattr(self.config, self.config.kind)
        return bool(sampler.num_inference_steps > 1)

    def _known(self, left_over: Tensor | None, delay: int, batch: int) -> Known | None:
        """Actions (B, horizon, A) that are executed while the chunk is computed, and where they are."""
        if left_over is None or delay < 1:
            return None
        left = left_over if left_over.ndim == 3 else left_over[None]
        # LeRobot pads what is left with zeros to a fixed length.
        real = _last(left) + 1
        first = self.config.n_obs_steps - 1
        steps = min(delay, real, self.config.horizon - first)
        values = left.new_zeros(batch, self.config.horizon, left.shape[-1])
        values[:, first : first + steps] = left[:, :steps]
        entries = torch.zeros_like(values, dtype=torch.bool)
        entries[:, first : first + steps] = True
        return values, entries

    def _observation(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What this library's policies take: uint8 (B, To, H, W, 3) of each camera, state (B, To, S), task (B, E)."""
        images = {camera: self._images(batch[key]) for camera, key in self.camera_keys.items()}
        states = [batch[key] if batch[key].ndim == 3 else batch[key][:, None] for key in self.state_keys]
        state = self._history(torch.cat(states, -1).float())
        observation: dict[str, Any] = {"images": images, "state": state}
        if self.model.instructions is not None:
            texts = [batch["task"]] * len(state) if isinstance(batch["task"], str) else batch["task"]
            vectors = [self.model.instructions.vector(text) for text in texts]
            observation["task"] = torch.stack(vectors).to(state.device)
        return observation

    def _images(self, images: Tensor) -> Tensor:
        """LeRobot's images, (B, C, H, W) or (B, To, C, H, W) from 0 to 1, to uint8 (B, To, H', W', 3)."""
        images = images if images.ndim == 5 else images[:, None]
        if images.dtype != torch.uint8:
            images = (images * 255).round_().clamp_(0, 255).to(torch.uint8)
        images = images.movedim(-3, -1).contiguous()  # as `prism train` has them: else other kernels, other last bits
        if self.resize is not None:
            images = torch.from_numpy(self.resize(images.cpu().numpy())).to(images.device)
        return self._history(images)

    def _history(self, frames: Tensor) -> Tensor:
        """(B, To, ...) as it is; (B, 1, ...) repeated."""
        steps = self.config.n_obs_steps
        return frames if frames.shape[1] == steps else frames.expand(-1, steps, *frames.shape[2:])

    @classmethod
    def _load_as_safetensor(cls, model: PrismPolicy, model_file: str, map_location: str, strict: bool) -> PrismPolicy:
        """Load every weight, or refuse the file; of one without an average, it starts at the weights."""
        tensors = load_file(model_file)
        averaged = {name for name in tensors if name.startswith("ema.")}
        if model.ema is None:
            tensors = {name: x for name, x in tensors.items() if name not in averaged}
        elif not averaged:
            tensors |= {f"ema.{name[6:]}": x for name, x in tensors.items() if name.startswith("model.")}
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise PrismError(f"{model_file} does not fit its config.json: {error}") from error
        return model


def camera_keys(config: PrismConfig) -> dict[str, str]:
    """LeRobot's keys of the cameras, by the name that this library gives each; depth maps are left out."""
    features = {key: about for key, about in config.image_features.items() if about.shape[0] == RGB}
    info: Any = {
        "features": {key: {"dtype": "image", "shape": about.shape, "names": None} for key, about in features.items()}
    }
    return cameras_of(info, Path("config.json"))[0]


def state_keys(config: PrismConfig) -> list[str]:
    """LeRobot's keys of vectors that are observed, in the dataset's order."""
    kinds = (FeatureType.STATE, FeatureType.ENV)
    keys = [
        key for key, about in (config.input_features or {}).items() if about.type in kinds and len(about.shape) == 1
    ]
    if not keys:
        there = ", ".join(config.input_features or {})
        raise ValueError(f"expected the feature 'observation.state', got {there}")
    return keys


def robot_of(config: PrismConfig, meta: Any) -> Schema:
    """Cameras at the size that the policy sees, and the parts of state and action: of the dataset, or by size alone."""
    resize = config.resize() or Resize()
    inputs = config.input_features or {}
    sizes = {camera: inputs[key].shape[1:] for camera, key in camera_keys(config).items()}
    cameras = {camera: resize.output(height, width, camera) for camera, (height, width) in sizes.items()}
    keys = state_keys(config)
    assert config.action_feature is not None
    dims = {**{key: inputs[key].shape[0] for key in keys}, ACTION: config.action_feature.shape[0]}
    if meta is None:
        state = tuple(Part(key.removeprefix("observation."), dims[key]) for key in keys)
        return Schema(cameras, state, (Part(ACTION, dims[ACTION]),))
    path = Path(meta.root)
    info = read_info(path)
    chosen: Any = {**info, "features": {key: about for key, about in info["features"].items() if key in dims}}
    state, action = (tuple(f.part for f in fields_of(chosen, path, prefix)[0]) for prefix in ("observation", ACTION))
    return replace(Schema(cameras, state, action), fps=float(info["fps"]))


def flat_names(names: Sequence[Any] | None, size: int) -> list[str] | None:
    """Names of this many numbers, out of lists within the list that some datasets have; none where they do not fit."""
    flat = [text for one in names or () for text in ([one] if isinstance(one, str) else one)]
    return flat if len(flat) == size else None


def _last(rows: Tensor) -> int:
    """Place of the last row of (B, T, A) that is not all zeros; -1 where there is none."""
    filled = (rows != 0).any(-1).any(0).nonzero()
    return int(filled.max()) if len(filled) else -1
