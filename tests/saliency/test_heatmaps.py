from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prism_policy.config import presets
from prism_policy.data.schema import task_schema
from prism_policy.run_folder import make_policy
from prism_policy.saliency.attribution import Objective
from prism_policy.saliency.heatmaps import keypoint_pixels, paint

WATCHED = (slice(10, 20), slice(30, 45))  # rows, columns


class WatchesOneRegion(nn.Module):
    """A policy whose whole chunk is the mean of one region of one camera's newest frame."""

    config = SimpleNamespace(encoder=SimpleNamespace(crop=0.9))

    def sample(self, observation: dict, noise: Tensor) -> Tensor:
        region = observation["images"]["front"][:, -1, *WATCHED].float() / 255
        unused = sum(0.0 * x.float().sum() for x in observation["images"].values())
        return region.mean(dim=(1, 2, 3))[:, None, None] * torch.ones_like(noise) + unused


def random_observation(cameras: tuple[str, ...], size: int = 84) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = {c: torch.randint(0, 256, (1, 2, size, size, 3), dtype=torch.uint8, generator=generator) for c in cameras}
    return {"images": images, "state": torch.rand(1, 2, 9, generator=generator)}


def input_gradient(policy: nn.Module, observation: dict, noise: Tensor) -> dict[str, np.ndarray]:
    f = Objective(policy, observation, noise)
    return {c: x.abs().sum(-1).numpy() for c, x in f.gradient(f.images).items()}


def test_all_saliency_lies_where_the_action_looks() -> None:
    observation = random_observation(("front", "wrist"))
    maps = input_gradient(WatchesOneRegion(), observation, torch.ones(1, 4, 2))
    assert maps["front"].shape == (1, 2, 84, 84)
    assert maps["front"].dtype == np.float32
    region = maps["front"][0, 1, *WATCHED]
    assert region.min() > 0
    assert region.sum() == pytest.approx(maps["front"].sum())
    assert maps["wrist"].sum() == 0
    # d <a, sg[a]> / d pixel, with a equal to the region's mean in all 8 numbers, summed over 3 colours
    mean = observation["images"]["front"][0, 1, *WATCHED].double().mean().item() / 255
    assert region == pytest.approx(8 * mean * 3 / (255 * 3 * 10 * 15), rel=1e-4)


class IsCurved(nn.Module):
    """A smooth policy in float64, so that finite differences do not drown in rounding."""

    def sample(self, observation: dict, noise: Tensor) -> Tensor:
        weights = torch.randn(8, 2 * 6 * 6 * 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return torch.tanh(observation["images"]["front"].double().flatten(1) / 255 @ weights.T).view(1, 4, 2) + noise


def test_saliency_is_the_slope_of_the_projection() -> None:
    observation, noise = random_observation(("front",), size=6), torch.full((1, 4, 2), 0.3)
    chunk = IsCurved().sample(observation, noise)

    def projection(index: tuple[int, ...], step: float) -> float:
        image = observation["images"]["front"].double()
        image[index] += step
        return float((IsCurved().sample({"images": {"front": image}}, noise) * chunk).sum())

    maps = input_gradient(IsCurved(), observation, noise)["front"]
    for frame, row, column in ((0, 2, 3), (1, 5, 0)):
        pixel = [(0, frame, row, column, colour) for colour in range(3)]
        slopes = [(projection(p, 1e-3) - projection(p, -1e-3)) / 2e-3 for p in pixel]
        assert maps[0, frame, row, column] == pytest.approx(np.abs(slopes).sum(), rel=1e-4)


def test_saliency_is_zero_outside_the_crop() -> None:
    policy = make_policy(presets.nano(), task_schema(presets.nano().task)).eval()
    observation = random_observation(("agentview", "robot0_eye_in_hand"))
    maps = input_gradient(policy, observation, policy.draw_noise(1, torch.Generator().manual_seed(0)))
    for values in maps.values():
        assert values[:, :, 4:80, 4:80].sum() == pytest.approx(values.sum())
        assert values.sum() > 0


def test_corner_keypoints_are_the_centres_of_the_corner_cells() -> None:
    corners = np.array([[-1, -1], [1, 1], [0, 0], [1, -1]], np.float32)
    pixels = keypoint_pixels(corners, height=84, width=84, crop=0.9, stage=1)  # 76 px, 4 on every side
    assert pixels == pytest.approx(np.array([[4, 4], [76, 76], [40, 40], [76, 4]]))  # 19 cells, 4 px apart
    deep = keypoint_pixels(corners, height=84, width=84, crop=0.9, stage=4)
    assert deep == pytest.approx(np.array([[4, 4], [68, 68], [36, 36], [68, 4]]))  # 3 cells, 32 px apart
    wide = keypoint_pixels(corners, height=100, width=200, crop=0.9, stage=2)  # 180 x 90: 23 x 12 cells
    assert wide == pytest.approx(np.array([[10, 5], [186, 93], [98, 49], [186, 5]]))


def test_a_painted_frame_is_dim_at_zero_and_bright_from_one_on() -> None:
    frame = np.full((2, 2, 3), 100, np.uint8)
    painted = paint(frame, np.array([[0.0, 0.5], [1.0, 9.0]], np.float32))
    assert (painted[0, 0] == 60).all()
    assert (painted[1, 0] == painted[1, 1]).all()
    assert painted[1, 0].sum() > painted[0, 1].sum() > painted[0, 0].sum()
