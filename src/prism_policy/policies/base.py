"""What every policy shares: observation encoder, U-Net, normalisers, the executed slice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prism_policy.config.settings import PolicyConfig, TaskConfig
from prism_policy.data.schema import Schema
from prism_policy.errors import PrismError
from prism_policy.models.encoder import VisualEncoder
from prism_policy.models.normalizer import LinearNormalizer
from prism_policy.models.packed import packed
from prism_policy.models.unet1d import ConditionalUNet1D, check_horizon
from prism_policy.policies.instructions import Instructions

Observation = Mapping[str, Any]
"""{"images": {camera: uint8 (B, To, H, W, 3)}, "state": float32 (B, To, S), "task": optional float32 (B, E),
"draws": optional, see `Policy.draw_sampling`}; to act, `task` may also be the instruction itself, or B of them."""

CORES_FROM = 20_000_000
"""Parameters from which on two cores are faster: at the paper's size 1.2 times in two threads, 1.6 times as two calls
side by side; at nano's nothing is gained, and two calls wait for Python's lock (benchmarks/RESULTS.md)."""

Known = tuple[Tensor, Tensor]
"""Normalised values (B, T, A) of actions that are given, and where they are: bool (B, T, A)."""


@dataclass(frozen=True)
class LossInputs:
    """What the loss of a batch of chunks is computed from."""

    actions: Tensor  # normalised, (B, T, A)
    cond: Tensor  # encoded observations, (B, D)
    noise: Tensor  # (B, T, A), see `Policy.draw_chunk`
    times: Tensor  # (B,) or (B, 2), see `Policy.draw_chunk`
    mask: Tensor | None = None
    """The M of Eq. 5 and 7, bool (B, T) or (B, T, A): entries outside (padded, disturbed, or given) are not learned."""
    mask_share: Tensor | None = None  # the mask's mean over the whole batch, where this is one process's part of it

    @property
    def mask_entries(self) -> Tensor:
        """The mask of every entry, bool (B, T, A)."""
        if self.mask is None:
            return torch.ones_like(self.actions, dtype=torch.bool)
        return (self.mask.unsqueeze(-1) if self.mask.ndim == 2 else self.mask).expand_as(self.actions)

    def masked_mean(self, error: Tensor) -> Tensor:
        """Mean of (B, T, A) over the entries in the mask (Eq. 5 and 7).

        With `mask_share`, the mean of what all processes return is the mean over the whole batch's entries.
        """
        if self.mask is None:
            return error.mean()
        mask = self.mask_entries.to(error.dtype)
        share = mask.mean() if self.mask_share is None else self.mask_share
        return (error * mask).mean() / share.clamp_min(1 / mask.numel())


def impose(x: Tensor, known: Known | None, level: Callable[[Tensor], Tensor]) -> Tensor:
    """Replace the known entries of x by their values at its noise level (inpainting)."""
    return x if known is None else torch.where(known[1], level(known[0]), x)


def check_policy(config: PolicyConfig) -> None:
    """Refuse settings that cannot work, before any weight is made."""
    sampler = getattr(config, config.kind)
    counts = {"n_obs_steps": config.n_obs_steps, "n_action_steps": config.n_action_steps}
    for name, value in {**counts, f"{config.kind}.num_inference_steps": sampler.num_inference_steps}.items():
        if value < 1:
            raise PrismError(f"{name}: expected at least 1, got {value}")
    last = config.n_obs_steps - 1 + config.n_action_steps
    if last > config.horizon:
        needs = " and ".join(f"{name} {value}" for name, value in counts.items())
        raise PrismError(f"{needs} need a horizon of at least {last}, got {config.horizon}")
    if not config.down_dims:
        raise PrismError("down_dims: expected at least one level of the U-Net, got none")
    check_horizon(config.horizon, len(config.down_dims))
    if odd := [dim for dim in config.down_dims if dim % config.n_groups]:
        raise PrismError(f"down_dims: expected multiples of n_groups ({config.n_groups}), got {odd[0]}")
    if config.kernel_size % 2 == 0:
        raise PrismError(f"kernel_size: expected an odd number, got {config.kernel_size}")
    least = 4 if config.kind == "meanflow" else 2  # sines and cosines, of two times
    if config.step_embed_dim % least or config.step_embed_dim < 2 * least:
        expected = f"expected a multiple of {least}, at least {2 * least}, for {config.kind}"
        raise PrismError(f"step_embed_dim: {expected}, got {config.step_embed_dim}")


class Policy(nn.Module):
    """A distribution of action chunks given the last observations. Subclasses define `chunk_loss` and `sample_chunk`.

    Usage::

        loss = policy(batch)
        actions = policy.act(observation, generator)  # (B, n_action_steps, A), in the environment's units
    """

    def __init__(
        self,
        config: PolicyConfig,
        schema: Schema,
        task_dim: int = 0,
        instructions: Instructions | None = None,
    ) -> None:
        super().__init__()
        check_policy(config)
        task_dim = task_dim if instructions is None else instructions.dim
        self.config, self.schema, self.instructions = config, schema, instructions
        self.action_dim, self.state_dim, self.task_dim = schema.action_dim, schema.state_dim, task_dim
        self.encoder = VisualEncoder(config.encoder, schema.cameras)
        # Of a one-hot vector this makes a learned embedding.
        self.task_encoder = nn.Linear(task_dim, config.task_embed_dim, bias=False) if task_dim else None
        cond_dim = config.n_obs_steps * (self.encoder.out_dim + self.state_dim) + bool(task_dim) * config.task_embed_dim
        sizes = (config.down_dims, config.kernel_size, config.n_groups, config.step_embed_dim)
        self.net = ConditionalUNet1D(self.action_dim, cond_dim, *sizes)
        dims = {"action": self.action_dim, "state": self.state_dim}
        self.normalizer = nn.ModuleDict({name: LinearNormalizer(dim) for name, dim in dims.items()})

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def gains_from_cores(self) -> bool:
        """Whether several cores make acting faster, in threads or as calls side by side: on a CPU, if it is large."""
        return self.device.type == "cpu" and sum(p.numel() for p in self.parameters()) >= CORES_FROM

    def fingerprint(self) -> str:
        """Digest of weights and statistics."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def task_condition(self, task: TaskConfig) -> dict[str, Tensor]:
        """What an observation (a batch of one) holds beside images and state: `task` (1, E), or nothing."""
        if self.instructions is None or not task.spec.instruction:
            return {}
        return {"task": self.instructions.vector(task.spec.instruction)[None].to(self.device)}

    def condition(self, observation: Observation, draws: Mapping[str, Tensor] | None = None) -> Tensor:
        """Encode the observation to (B, To * (D_img + S) + E'): frame by frame, oldest first, then the task.

        What is random about it are `draws`, by default the observation's; without any the encoder draws anew.
        """
        draws = observation.get("draws") if draws is None else draws
        images: Mapping[str, Tensor] = observation["images"]
        state: Tensor = self.normalizer["state"](observation["state"])  # (B, To, S)
        batch, steps = state.shape[:2]
        if draws is not None:
            draws = {name: x.flatten(0, 1) for name, x in draws.items() if "." in name}  # the encoder's
        features = self.encoder({c: x.flatten(0, 1) for c, x in images.items()}, draws)  # (B * To, D_img)
        cond = torch.cat([features.view(batch, steps, -1), state], dim=-1).flatten(1)
        return cond if self.task_encoder is None else torch.cat([cond, self.task_encoder(observation["task"])], dim=-1)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The training loss of a batch of windows: all of it here, so that DDP sees one module.

        A batch is of `Windows.batch`. With `draws`, rows of what `draw` returned, the loss is a function of the batch
        alone; else they are drawn here. `mask_share` is that of `LossInputs`.
        """
        steps, dim = self.config.horizon, self.action_dim
        if batch["actions"].shape[1:] != (steps, dim):
            raise PrismError(f"actions: expected (B, {steps}, {dim}), got {tuple(batch['actions'].shape)}")
        actions = self.normalizer["action"](batch["actions"])  # (B, T, A)
        draws = batch.get("draws")
        if draws is None:
            draws = {name: x.to(actions.device) for name, x in self.draw(len(actions)).items()}
        noise, times = draws["noise"].flatten(0, 1), draws["times"].flatten(0, 1)
        copies = len(noise) // len(actions)
        cond, mask = self.condition(batch, draws), batch.get("mask")
        if copies > 1:
            actions, cond = (x.repeat_interleave(copies, dim=0) for x in (actions, cond))
            mask = None if mask is None else mask.repeat_interleave(copies, dim=0)
        return self.chunk_loss(LossInputs(actions, cond, noise, times, mask, batch.get("mask_share")))

    def draw(
        self, batch: int, generator: torch.Generator | None = None, training: bool | None = None, copies: int = 1
    ) -> dict[str, Tensor]:
        """All randomness of a batch's loss, a row a window, from the CPU: a seed means the same on every device, and to
        each of several processes that take some of the rows.

        Crops are random in `training`, by default the module's mode, which another thread may be changing.

        Returns:
            `noise` (B, N, T, A) and `times` (B, N, ...) for `copies` N of each window, which is encoded once, and what
            the encoder draws for each of the frames, (B, To, ...).
        """
        noise, times = (x.view(batch, copies, *x.shape[1:]) for x in self.draw_chunk(batch * copies, generator))
        frames = self.encoder.draw(batch * self.config.n_obs_steps, generator, training)
        of_encoder = {name: x.view(batch, self.config.n_obs_steps, -1) for name, x in frames.items()}
        return {"noise": noise, "times": times, **of_encoder}

    def draw_chunk(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The noise (B, T, A) and the times (B, ...) of a batch's loss."""
        noise = torch.randn(batch, self.config.horizon, self.action_dim, generator=generator)
        return noise, self.draw_times(batch, generator)

    @property
    def num_draws(self) -> int:
        """Gaussian chunks that sampling needs: the start, and what a stochastic sampler adds on its way."""
        return 1

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """The noise of sampling, (B, num_draws, T, A); from the CPU, so that a seed means the same everywhere."""
        shape = (batch, self.num_draws, self.config.horizon, self.action_dim)
        return torch.randn(shape, generator=generator).to(self.device)

    def draw_sampling(self, batch: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """All randomness of acting, a row an observation: `noise`, and what the encoder draws outside training."""
        noise, frames = self.draw_noise(batch, generator), batch * self.config.n_obs_steps
        orders = self.encoder.draw(frames, generator, training=False)
        shape = (batch, self.config.n_obs_steps, -1)
        return {"noise": noise} | {name: x.view(shape).to(self.device) for name, x in orders.items()}

    def sample(self, observation: Observation, noise: Tensor, known: Known | None = None) -> Tensor:
        """Normalised action chunk (B, T, A) from `draw_noise`; differentiable with respect to the observation.

        Where the encoder shuffles keypoints, `draws` in the observation make it a function of its arguments alone.
        """
        return self.sample_chunk(noise, self.condition(observation), known)

    def act(
        self, observation: Observation, generator: torch.Generator | None = None, known: Known | None = None
    ) -> Tensor:
        """The actions to execute now, (B, n_action_steps, A), in the environment's units.

        Args:
            generator: of all that is random; an episode's own makes its outcome independent of what runs beside it.
            known: actions (B, T, A) in the environment's units that are given, such as the rest of the chunk before,
                and where they are, bool (B, T, A): the others are sampled to go with them (inpainting).

        Raises:
            PrismError: observations or known actions that are missing, not finite, of another shape, or far beyond
                the training data.
        """
        return self.predict_chunk(observation, generator, known)[:, self.executed]

    @property
    def executed(self) -> slice:
        """The steps of a chunk that are executed: it starts at the oldest frame, and the newest one's action is due."""
        first = self.config.n_obs_steps - 1
        return slice(first, first + self.config.n_action_steps)

    @torch.no_grad()
    def predict_chunk(
        self,
        observation: Observation,
        generator: torch.Generator | None = None,
        known: Known | None = None,
        draws: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `act`, the whole chunk (B, T, A); `draws`, of `draw_sampling`, may come from a generator for each row."""
        observation = self._checked(observation)
        batch = len(observation["state"])
        known = None if known is None else self._checked_known(known, batch)
        draws = self.draw_sampling(batch, generator) if draws is None else draws
        normalised = packed(self).sample({**observation, "draws": draws}, draws["noise"], known)
        chunk: Tensor = self.normalizer["action"].invert(normalised)  # type: ignore[operator]
        if not torch.isfinite(chunk).all():
            raise PrismError("the policy's actions hold NaN or infinity; train it again, with a lower learning rate")
        return chunk

    def _checked(self, observation: Observation) -> Observation:
        if missing := {"images", "state"} - observation.keys():
            raise PrismError(f"the observation lacks '{min(missing)}'; it has {', '.join(observation) or 'nothing'}")
        state = torch.as_tensor(observation["state"], dtype=torch.float32, device=self.device)
        images = {c: torch.as_tensor(x, device=self.device) for c, x in observation["images"].items()}
        expected = (self.config.n_obs_steps, self.state_dim)
        if state.shape[1:] != expected:
            raise PrismError(f"state: expected (B, {expected[0]}, {expected[1]}), got {tuple(state.shape)}")
        self.normalizer["state"].check(state, "state")  # type: ignore[operator]
        for camera in self.encoder.cameras:
            if camera in images and images[camera].shape[:2] != state.shape[:2]:
                expected_shape = "(" + ", ".join(map(str, (*state.shape[:2], *self.encoder.cameras[camera], 3))) + ")"
                raise PrismError(f"camera '{camera}': expected {expected_shape}, got {tuple(images[camera].shape)}")
        checked: dict[str, Any] = {"images": images, "state": state}
        if self.task_dim:
            if "task" not in observation:
                hint = f"this policy expects an instruction or its vector (B, {self.task_dim})"
                raise PrismError(f"task is missing; {hint}")
            vectors = self._task_vectors(observation["task"], len(state))
            checked["task"] = task = torch.as_tensor(vectors, dtype=torch.float32, device=self.device)
            if task.shape != (len(state), self.task_dim):
                raise PrismError(f"task: expected ({len(state)}, {self.task_dim}), got {tuple(task.shape)}")
        return checked

    def _task_vectors(self, task: Any, batch: int) -> Any:
        """The vectors (B, E) of an instruction or of B of them; anything else as it is."""
        if isinstance(task, str):
            task = [task] * batch
        if self.instructions is None or isinstance(task, Tensor) or not all(isinstance(x, str) for x in task):
            return task
        return torch.stack([self.instructions.vector(x) for x in task])

    def _checked_known(self, known: Known, batch: int) -> Known:
        values, entries = (torch.as_tensor(x, device=self.device) for x in known)
        shape = (batch, self.config.horizon, self.action_dim)
        if values.shape != shape or entries.shape != shape or entries.dtype != torch.bool:
            got = f"{tuple(values.shape)} and {tuple(entries.shape)} of type {str(entries.dtype)[6:]}"
            raise PrismError(f"known: expected actions and a bool mask of shape {shape}, got {got}")
        if not torch.isfinite(values[entries]).all():
            raise PrismError("known actions hold NaN or infinity where the mask says they are known")
        return self.normalizer["action"](values.nan_to_num()), entries

    @property
    def time_scale(self) -> float:
        """What times are multiplied by before the network's sinusoidal embedding, which was made for steps 0 to 100."""
        return 1.0

    def predict(self, x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        """What the network regresses (noise, velocity or average velocity) at times (B,) or (B, n): (B, T, A)."""
        return self.net(x, self.time_scale * times, cond)

    def predict_at(self, times: Tensor, cond: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """`predict` as a function of x alone at each of the `times`, (m,) or (m, n), that sampling visits."""
        return self.net.at(self.time_scale * times, cond)

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """The diffusion steps or flow times of a batch's loss, (B,) or (B, 2)."""
        raise NotImplementedError

    def denoise(self, level: float, actions: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """The clean chunk that one call of the network sees behind a mixture of actions and noise, (B, T, A) each.

        `level` says how far the mixture is from the actions (0, excluded) to the noise (1).
        """
        raise NotImplementedError

    def chunk_loss(self, inputs: LossInputs) -> Tensor:
        """Scalar loss of normalised chunks given conditions, over the entries in the mask."""
        raise NotImplementedError

    def sample_chunk(self, noise: Tensor, cond: Tensor, known: Known | None = None) -> Tensor:
        """Normalised chunk (B, T, A) from noise (B, num_draws, T, A) given conditions (B, D) and known entries."""
        raise NotImplementedError
