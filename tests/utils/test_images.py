"""Cutting and resizing: by area, the same bits for one image as for many, refusing what does not fit."""

import numpy as np
import pytest

from prism_policy.errors import PrismError
from prism_policy.utils.images import Resize


def resized(size: str, crop: str = "") -> Resize:
    resize = Resize.parse(size, crop)
    assert resize is not None
    return resize


def test_shrinking_averages_what_becomes_one_pixel() -> None:
    """A checkerboard of single pixels becomes grey; without antialiasing it would stay black and white."""
    board = (np.indices((96, 128)).sum(0) % 2 * 255).astype(np.uint8)
    small = resized("12x16")(np.repeat(board[..., None], 3, axis=-1))
    assert small.shape == (12, 16, 3)
    assert np.abs(small.astype(int) - 127).max() <= 8


def test_an_image_among_others_has_the_bits_it_has_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 64, 3), np.uint8)
    resize = resized("20", crop="4,8,40,48")
    together = resize(images)
    assert together.shape == (2, 3, 20, 20, 3)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[i, j], resize(images[i, j]))


def test_a_box_alone_is_what_slicing_gives() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    np.testing.assert_array_equal(resized("", crop="4,8,40,48")(images), images[:, 4:44, 8:56])


def test_nothing_asked_for_is_nothing() -> None:
    assert Resize.parse("") is None


@pytest.mark.parametrize(
    ("size", "crop", "sentence"),
    [
        ("7", "", "data.resize: expected 84, or 96x128"),
        ("84,84", "", "data.resize: expected 84, or 96x128 for height and width, from 8 to 4096 px, got '84,84'"),
        ("84", "0,0,5,5", "data.crop: expected TOP,LEFT,HEIGHT,WIDTH such as 0,80,480,480, at least 8 px"),
    ],
)
def test_what_is_no_size_or_box_is_said(size: str, crop: str, sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        Resize.parse(size, crop)


def test_a_box_beyond_the_image_names_the_camera() -> None:
    with pytest.raises(PrismError, match="the box 0,30,40,40 leaves the 48x64 images of camera 'front'"):
        resized("", crop="0,30,40,40").output(48, 64, camera="front")
