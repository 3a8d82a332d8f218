"""Colours and blanked rectangles: what PIL makes of the same factors, and only in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from prism_policy.config import presets
from prism_policy.models.augment import erase_rectangle, jitter_color
from prism_policy.models.encoder import VisualEncoder


def images(batch: int, height: int = 40, width: int = 56) -> Tensor:
    """Smooth random pictures, uint8."""
    coarse = torch.rand(batch, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1)


def by_pil(image: Tensor, factors: Tensor) -> np.ndarray:
    picture = Image.fromarray(image.numpy())
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        picture = enhance(picture).enhance(float(factor))
    return np.asarray(picture).astype(float)


def test_colours_are_those_of_pil() -> None:
    numbers = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    jittered = jitter_color(images(6).float(), numbers, 0.5)
    for image, row, actual in zip(images(6), numbers, jittered, strict=True):
        expected = by_pil(image, 0.5 + row)
        assert np.abs(actual.numpy() - expected).max() <= 4  # PIL drops what is after the point, three times
        assert np.abs(expected - image.numpy()).max() > 8


def test_numbers_in_the_middle_change_nothing() -> None:
    torch.testing.assert_close(jitter_color(images(2).float(), torch.full((2, 3), 0.5), 1.0), images(2).float())


def test_rectangles_have_the_area_form_and_share_they_should() -> None:
    generator = torch.Generator().manual_seed(2)
    erased = erase_rectangle(torch.ones(4000, 60, 80, 3), torch.rand(4000, 5, generator=generator), 0.3)
    gone = erased[..., 0] == 0
    assert torch.equal(erased[..., 0], erased[..., 2])
    hit = gone.flatten(1).any(1)
    assert abs(float(hit.float().mean()) - 0.3) < 0.03
    rows, columns = gone.any(2)[hit].sum(1), gone.any(1)[hit].sum(1)
    areas = gone.sum((1, 2))[hit]
    assert torch.equal(areas, rows * columns)  # rectangles
    assert areas.min() / 4800 == pytest.approx(0.02, abs=0.005)
    assert areas.max() / 4800 == pytest.approx(0.2, abs=0.01)
    assert areas.float().mean() / 4800 == pytest.approx(0.11, abs=0.005)
    forms = (rows / columns).log()
    assert forms.abs().max() < np.log(10 / 3) + 0.2
    assert abs(float(forms.mean())) < 0.1
    for edge in (gone[:, 0], gone[:, -1], gone[:, :, 0], gone[:, :, -1]):
        assert edge.any()


def test_they_are_drawn_for_training_alone_and_decide_the_loss_of_an_update() -> None:
    config = replace(presets.encoder("sspool"), width=16, color_jitter=0.4, random_erasing=0.5)
    encoder = VisualEncoder(config, {"front": (40, 56)})
    draws = encoder.draw(4, torch.Generator().manual_seed(3), training=True)
    assert {name: x.shape[1] for name, x in draws.items()} == {"crop.front": 2, "jitter.front": 3, "erase.front": 5}
    assert encoder.draw(4, training=False) == {}
    first, again = (encoder({"front": images(4)}, draws) for _ in range(2))
    assert torch.equal(first, again)
    other = {**draws, "jitter.front": draws["jitter.front"].flip(0)}
    assert not torch.equal(first, encoder({"front": images(4)}, other))
    plain = VisualEncoder(replace(config, color_jitter=0.0, random_erasing=0.0), {"front": (40, 56)})
    assert set(plain.draw(4, training=True)) == {"crop.front"}
    # The crop is that of the run without augmentation: it is drawn first.
    same = plain.draw(4, torch.Generator().manual_seed(3), training=True)
    assert torch.equal(same["crop.front"], draws["crop.front"])
