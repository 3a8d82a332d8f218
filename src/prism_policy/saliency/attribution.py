"""Which pixels move the action, by five definitions of "move", all of one scalar and with fixed noise and times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prism_policy.config.options import Attribution
from prism_policy.data.schema import slices
from prism_policy.errors import PrismError

if TYPE_CHECKING:
    from prism_policy.policies.base import Observation, Policy

METHODS = ("gradient", "smoothgrad", "integrated_gradients", "layercam", "occlusion")
_ROWS_AT_ONCE = 64  # of occluded images
Images = dict[str, Tensor]
"""camera -> (B, To, H, W, 3) in 0 to 255."""


def check(how: Attribution, policy: Policy) -> None:
    """Refuse what this policy does not have."""
    if how.method not in METHODS:
        raise PrismError(f"unknown method '{how.method}'; there are {', '.join(METHODS)}")
    parts = list(slices(policy.schema.action))
    if how.target not in ("chunk", *parts, *map(str, range(policy.action_dim))):
        dimensions = f"an action dimension from 0 to {policy.action_dim - 1}"
        raise PrismError(f"unknown target '{how.target}'; expected chunk, {', '.join(parts)}, or {dimensions}")
    deepest = policy.config.encoder.stages_read[-1]
    if how.stage is not None and not 1 <= how.stage <= deepest:
        raise PrismError(f"unknown stage {how.stage}; this encoder's trunk has stages 1 to {deepest}")
    if how.stage is not None and how.method != "layercam":
        raise PrismError(f"stage {how.stage} is for method 'layercam', got '{how.method}'")
    if how.noise_level is not None and not 0 < how.noise_level <= 1:
        raise PrismError(f"noise_level: expected a number in (0, 1], got {how.noise_level}")
    for name, value in {"samples": how.samples, "patch": how.patch}.items():
        if value is not None and value < 1:
            raise PrismError(f"{name}: expected at least 1, got {value}")


class Objective:
    """f(images) = <a(images), d> of each row: a is the normalised chunk from fixed noise, d a fixed direction.

    For the target `chunk`, d is what the policy does with the observation as it is, a itself without its gradient::

        f = Objective(policy, observation, policy.draw_noise(batch, generator))
        slopes = f.gradient(f.images)  # (B, To, H, W, 3) a camera
    """

    def __init__(
        self,
        policy: Policy,
        observation: Observation,
        noise: Tensor,
        target: str = "chunk",
        noise_level: float | None = None,
    ) -> None:
        self.policy, self.noise, self.noise_level = policy, noise, noise_level
        self.images: Images = dict(observation["images"])
        self.others = {name: x for name, x in observation.items() if name != "images"}
        with torch.no_grad():
            self.actions = self._sample(self.images)  # (B, T, A)
            chunk = self.actions if noise_level is None else self.chunk(self.images)
        if target == "chunk":
            self.direction = chunk
        else:
            self.direction = torch.zeros_like(chunk)
            number = int(target) if target.isdecimal() else None
            numbers = slices(policy.schema.action)[target] if number is None else slice(number, number + 1)
            executed = policy.executed
            self.direction[:, executed, numbers] = 1 / (executed.stop - executed.start)

    def chunk(self, images: Images, rows: Tensor | None = None) -> Tensor:
        """Normalised chunks (N, T, A) of images (N, To, H, W, 3) of the observations `rows` (N,); None is all."""
        some = slice(None) if rows is None else rows
        if self.noise_level is None:
            return self._sample(images, some)
        with _fixed_order():
            cond = self.policy.condition(self._observation(images, some))
        return self.policy.denoise(self.noise_level, self.actions[some], self.noise[some, 0], cond)

    def _observation(self, images: Images, some: Tensor | slice) -> dict[str, Any]:
        return {**{name: x[some] for name, x in self.others.items()}, "images": images}

    def _sample(self, images: Images, some: Tensor | slice = slice(None)) -> Tensor:
        with _fixed_order():
            return self.policy.sample(self._observation(images, some), self.noise[some])

    def __call__(self, images: Images, rows: Tensor | None = None) -> Tensor:
        """f, (N,)."""
        return (self.chunk(images, rows) * self.direction[slice(None) if rows is None else rows]).sum((1, 2))

    def gradient(self, images: Images) -> Images:
        """Slope of f along every colour of every pixel, (B, To, H, W, 3) a camera [1 / grey level of 255]."""
        leaves = _leaves(images)
        slopes = torch.autograd.grad(self(leaves).sum(), list(leaves.values()))
        return dict(zip(leaves, slopes, strict=True))


@contextmanager
def _fixed_order() -> Iterator[None]:
    """Encoders that shuffle keypoints do it alike in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _leaves(images: Images) -> Images:
    return {c: (x if x.is_floating_point() else x.float()).detach().clone().requires_grad_() for c, x in images.items()}


def mean_colour(images: Images) -> Images:
    """What stands for "nothing there": every frame in its mean colour, as uint8 (B, To, H, W, 3).

    Black, the usual choice, would declare everything black unimportant, and much of a gripper is.
    """
    return {c: x.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(x) for c, x in images.items()}


def smooth_gradient(f: Objective, samples: int, blur: float, seed: int = 0) -> Images:
    """Mean gradient over noisy copies of the images (SmoothGrad, arXiv:1706.03825), (B, To, H, W, 3) a camera."""
    generator = torch.Generator().manual_seed(seed)
    total = {c: torch.zeros_like(x, dtype=torch.float32) for c, x in f.images.items()}
    for _ in range(samples):
        # The same noise for every row: a map does not depend on what else is in the batch.
        noise = {c: torch.randn(x.shape[1:], generator=generator).to(x.device) for c, x in f.images.items()}
        slopes = f.gradient({c: x.float() + 255 * blur * noise[c] for c, x in f.images.items()})
        total = {c: t + slopes[c] / samples for c, t in total.items()}
    return total


def integrated_gradients(f: Objective, samples: int) -> Images:
    """What each colour of each pixel adds on the way from the mean colour (arXiv:1703.01365), (B, To, H, W, 3).

    The path is cut into `samples` parts, each with the gradient in its middle; the sum over all pixels of all cameras
    tends to f(images) - f(mean colour).
    """
    start = {c: x.float() for c, x in mean_colour(f.images).items()}
    way = {c: x.float() - start[c] for c, x in f.images.items()}
    total = {c: torch.zeros_like(x) for c, x in way.items()}
    for i in range(samples):
        slopes = f.gradient({c: start[c] + (i + 0.5) / samples * way[c] for c in way})
        total = {c: t + slopes[c] * way[c] / samples for c, t in total.items()}
    return total


def layer_cam(f: Objective, stage: int | None = None) -> Images:
    """relu(sum over channels of relu(df/dA) A) of a stage's map A, (B, To, H, W): what favours f (LayerCAM, 2021)."""
    encoder = f.policy.encoder
    stage = stage or encoder.config.stages_read[-1]
    maps: list[Tensor] = []  # in the order in which the encoder takes the cameras, one trunk for all or not
    trunks = {id(e.trunk): e.trunk for e in encoder.encoders.values()}
    layers = [trunk.get_submodule(f"layer{stage}") for trunk in trunks.values()]  # type: ignore[union-attr]
    hooks = [layer.register_forward_hook(lambda _, __, output: maps.append(output)) for layer in layers]
    try:
        total = f(_leaves(f.images)).sum()
    finally:
        for hook in hooks:
            hook.remove()
    slopes = torch.autograd.grad(total, maps)
    cams = {}
    for camera, features, slope in zip(encoder.cameras, maps, slopes, strict=True):
        cam = F.relu((F.relu(slope) * features).sum(1)).detach().float()  # (B * To, h, w)
        size = encoder.cameras[camera]
        seen = on_pixels(cam, encoder.crops[camera], 2 ** (stage + 1))
        cams[camera] = in_whole(seen, size).view(*f.images[camera].shape[:2], *size)
    return cams


def in_whole(crops: Tensor, size: Sequence[int]) -> Tensor:
    """Centre crops (B, h, w) in their whole images `(B, *size)`, zero around them."""
    top, left = ((whole - part) // 2 for whole, part in zip(size, crops.shape[1:], strict=True))
    return F.pad(crops, (left, size[1] - crops.shape[2] - left, top, size[0] - crops.shape[1] - top))


def on_pixels(values: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Interpolate a feature map (B, h, w) to pixels `(B, *size)`: its cell (i, j) is centred on pixel (i, j) * stride.

    That is where the trunk's paddings put it; stretching the map over the image would shift it by half a stride.
    """
    places = [
        (2 * torch.arange(n, device=values.device) / (stride * max(cells - 1, 1)) - 1).to(values.dtype)
        for n, cells in zip(size, values.shape[1:], strict=True)
    ]
    y, x = torch.meshgrid(*places, indexing="ij")
    grid = torch.stack([x, y], dim=-1).expand(len(values), *size, 2)
    return F.grid_sample(values[:, None], grid, mode="bilinear", padding_mode="border", align_corners=True)[:, 0]


@torch.no_grad()
def occlusion(f: Objective, patch: int) -> Images:
    """`|f - f where a square is painted over|`, averaged over the squares that cover a pixel, (B, To, H, W) a camera.

    A square is painted in the frame's mean colour, in all frames of a camera at once (arXiv:1311.2901, Figure 7).
    """
    before, blank = f(f.images), mean_colour(f.images)
    maps = {}
    for camera, frames in f.images.items():
        batch, _, height, width, _ = frames.shape
        corners = [(y, x) for y in _starts(height, patch) for x in _starts(width, patch)]
        jobs = [(row, *corner) for corner in corners for row in range(batch)]
        total = frames.new_zeros(batch, height, width, dtype=torch.float32)
        count = torch.zeros(height, width)
        for y, x in corners:
            count[y : y + patch, x : x + patch] += 1
        for first in range(0, len(jobs), _ROWS_AT_ONCE):
            some = jobs[first : first + _ROWS_AT_ONCE]
            rows = torch.tensor([row for row, _, _ in some], device=frames.device)
            images = {c: x[rows].clone() for c, x in f.images.items()}
            for i, (row, y, x) in enumerate(some):
                square = (slice(None), slice(y, y + patch), slice(x, x + patch))
                images[camera][i][square] = blank[camera][row][square]
            change = (f(images, rows) - before[rows]).abs().float()
            for (row, y, x), value in zip(some, change, strict=True):
                total[row, y : y + patch, x : x + patch] += value
        maps[camera] = (total / count.to(total.device))[:, None].expand(frames.shape[:-1])
    return maps


def _starts(size: int, patch: int) -> list[int]:
    """Where squares begin along a side, by half a square, the last one at the end."""
    last = max(size - patch, 0)
    return [*range(0, last, max(patch // 2, 1)), last]


def saliency(policy: Policy, observation: Observation, how: Attribution) -> dict[str, NDArray[np.float32]]:
    """Saliency maps of any number of observations by any method, >= 0, float32 (B, To, H, W) a camera.

    Pixels outside the centre crop have none. Every observation meets the same noise, whatever else is in the batch.
    """
    check(how, policy)
    parts = [maps_of(f, how) for f in objectives(policy, observation, how)]
    return {c: np.concatenate([p[c] for p in parts]) for c in parts[0]}


def objectives(policy: Policy, observation: Observation, how: Attribution) -> Iterator[Objective]:
    """An `Objective` for a few rows at a time of an observation: a gradient's memory grows with the sampler's calls."""
    calls = getattr(policy.config, policy.config.kind).num_inference_steps if how.noise_level is None else 1
    batch = max(1, min(16, 160 // calls))
    noise = policy.draw_noise(1, torch.Generator().manual_seed(how.seed))
    for first in range(0, len(observation["state"]), batch):
        rows = slice(first, first + batch)
        part: dict[str, Any] = {
            n: torch.as_tensor(x[rows]).to(policy.device) for n, x in observation.items() if n != "images"
        }
        images = {c: torch.as_tensor(observation["images"][c][rows]).to(policy.device) for c in policy.encoder.cameras}
        some = noise.expand(len(part["state"]), *noise.shape[1:])
        yield Objective(policy, {"images": images, **part}, some, how.target, how.noise_level)


def maps_of(f: Objective, how: Attribution) -> dict[str, NDArray[np.float32]]:
    """The saliency maps of an objective, as `saliency` returns them."""
    match how.method:
        case "gradient":
            signed = f.gradient(f.images)
        case "smoothgrad":
            signed = smooth_gradient(f, how.samples or 16, how.blur, how.seed)
        case "integrated_gradients":
            signed = integrated_gradients(f, how.samples or 64)
        case "layercam":
            return {c: x.cpu().numpy() for c, x in layer_cam(f, how.stage).items()}
        case _:
            return {c: x.cpu().numpy() for c, x in occlusion(f, how.patch).items()}
    return {c: x.abs().sum(-1).float().cpu().numpy() for c, x in signed.items()}
