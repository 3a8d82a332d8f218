"""Windows and batches hold what the definition says, at the edges too."""

import numpy as np
import torch

from panda import frames_of
from prism_policy.data.robomimic import Episode
from prism_policy.data.windows import Windows, batch_indices


def test_windows_pad_one_frame_before_and_seven_actions_after(episodes: list[Episode]) -> None:
    windows = Windows(frames_of(episodes), horizon=16, n_obs_steps=2, n_action_steps=8)
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
    windows = Windows(frames_of(episodes), horizon=16, n_obs_steps=2, n_action_steps=8)
    batch = windows.batch(torch.tensor([5, len(windows) - 1]))
    start = 4  # window 5 starts at step 4, for the first one starts at -1
    np.testing.assert_array_equal(batch["actions"][0], episodes[0].actions[start : start + 16])
    np.testing.assert_array_equal(batch["images"]["agentview"][0], episodes[0].images["agentview"][start : start + 2])
    np.testing.assert_array_equal(batch["actions"][1, -1], episodes[1].actions[-1])


def cut(episode: Episode, steps: int, pushed: list[int] | None = None) -> Episode:
    disturbed = np.zeros(steps, bool)
    disturbed[pushed or []] = True
    images = {c: x[:steps] for c, x in episode.images.items()}
    return Episode("cut", images, episode.state[:steps], episode.actions[:steps], disturbed, np.zeros((steps, 0)))


def test_an_episode_shorter_than_the_horizon_still_gives_windows(episodes: list[Episode]) -> None:
    windows = Windows(frames_of([cut(episodes[0], 5)]), horizon=16, n_obs_steps=2, n_action_steps=8)
    assert windows.predicted[0].tolist() == [0, 0, 1, 2, 3] + [4] * 11
    assert windows.mask.all()


def test_pushes_and_what_follows_them_unseen_are_masked(episodes: list[Episode]) -> None:
    episode = cut(episodes[0], 12, pushed=[5, 6])
    windows = Windows(frames_of([episode]), horizon=4, n_obs_steps=2, n_action_steps=4)
    newest = windows.observed[:, 1].tolist()
    assert newest == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 11]  # frames 5 and 6 are never the newest
    # The chunk of newest frame n holds the steps n - 1 .. n + 2; of n = 4, steps 5 and 6 are pushes.
    assert dict(zip(newest, windows.mask.int().tolist(), strict=True)) == {
        0: [1, 1, 1, 1], 1: [1, 1, 1, 1], 2: [1, 1, 1, 1], 3: [1, 1, 1, 0], 4: [1, 1, 0, 0],
        7: [0, 1, 1, 1], 8: [1, 1, 1, 1], 9: [1, 1, 1, 1], 10: [1, 1, 1, 1], 11: [1, 1, 1, 1],
    }  # fmt: skip
    assert windows.predicted[newest.index(4)].tolist() == [3, 4, 4, 4]  # masked steps hold no pushed action


def test_every_epoch_is_a_permutation_and_epochs_join_without_a_gap() -> None:
    drawn = torch.cat([batch_indices(step, 8, 21, seed=3) for step in range(21)])  # 8 epochs of 21
    for epoch in range(8):
        assert sorted(drawn[epoch * 21 : (epoch + 1) * 21].tolist()) == list(range(21))
    assert drawn[:21].tolist() != drawn[21:42].tolist()


def test_a_batch_larger_than_the_data_spans_several_epochs() -> None:
    assert torch.bincount(batch_indices(0, 10, 3, seed=0)).tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])
