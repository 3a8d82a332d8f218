"""Windows and batches hold what the definition says, at the edges too."""

import numpy as np
import torch

from prism_policy.data.robomimic import Episode
from prism_policy.data.windows import Windows, batch_indices


def test_windows_pad_one_frame_before_and_seven_actions_after(episodes: list[Episode]) -> None:
    windows = Windows(episodes, horizon=16, n_obs_steps=2, n_action_steps=8)
    expected_frames, expected_actions = [], []
    first = 0
    for episode in episodes:
        steps = len(episode)
        for start in range(-1, steps - 16 + 7 + 1):
            expected_frames.append([first + min(max(start + i, 0), steps - 1) for i in range(2)])
            expected_actions.append([first + min(max(start + i, 0), steps - 1) for i in range(16)])
        first += steps
    assert windows.observed.tolist() == expected_frames
    assert windows.predicted.tolist() == expected_actions


def test_a_batch_pairs_frames_with_their_actions(episodes: list[Episode]) -> None:
    windows = Windows(episodes, horizon=16, n_obs_steps=2, n_action_steps=8)
    batch = windows.batch(torch.tensor([5, len(windows) - 1]))
    start = 4  # window 5 starts at step 4, for the first one starts at -1
    np.testing.assert_array_equal(batch["actions"][0], episodes[0].actions[start : start + 16])
    np.testing.assert_array_equal(batch["images"]["agentview"][0], episodes[0].images["agentview"][start : start + 2])
    np.testing.assert_array_equal(batch["actions"][1, -1], episodes[1].actions[-1])


def test_an_episode_shorter_than_the_horizon_still_gives_windows(episodes: list[Episode]) -> None:
    short = episodes[0]
    cut = Episode(short.name, {c: x[:5] for c, x in short.images.items()}, short.proprio[:5], short.actions[:5],
                  short.executed[:5], short.states[:5])  # fmt: skip
    windows = Windows([cut], horizon=16, n_obs_steps=2, n_action_steps=8)
    assert windows.predicted[0].tolist() == [0, 0, 1, 2, 3] + [4] * 11


def test_every_epoch_is_a_permutation_and_epochs_join_without_a_gap() -> None:
    drawn = torch.cat([batch_indices(step, 8, 21, seed=3) for step in range(21)])  # 8 epochs of 21
    for epoch in range(8):
        assert sorted(drawn[epoch * 21 : (epoch + 1) * 21].tolist()) == list(range(21))
    assert drawn[:21].tolist() != drawn[21:42].tolist()


def test_a_batch_larger_than_the_data_spans_several_epochs() -> None:
    assert torch.bincount(batch_indices(0, 10, 3, seed=0)).tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])
