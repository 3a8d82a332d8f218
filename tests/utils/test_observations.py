"""History stacking."""

import numpy as np

from prism_policy.utils.observations import stack_history


def test_history_has_a_leading_axis_oldest_first() -> None:
    frames = [{"images": {"a": np.full((2, 3, 3), i, np.uint8)}, "state": np.full(9, i, np.float32)} for i in (4, 7)]
    stacked = stack_history(frames)
    assert stacked["images"]["a"].shape == (2, 2, 3, 3)
    assert stacked["images"]["a"].dtype == np.uint8
    assert stacked["images"]["a"][:, 0, 0, 0].tolist() == [4, 7]
    assert stacked["state"].dtype == np.float32
    assert stacked["state"][:, 0].tolist() == [4.0, 7.0]
