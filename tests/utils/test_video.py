from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from prism_policy.utils.video import FAILURE_COLOUR, SUCCESS_COLOUR, mark_outcome, read_video, tile, write_video


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_video_holds_the_frames_that_went_in(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    frames = np.stack([np.stack([2 * x + t, 3 * y, np.full_like(x, 90)], -1) for t in range(12)]).astype(np.uint8)
    write_video(tmp_path / "video.mp4", frames, fps=20)
    actual = read(tmp_path / "video.mp4")
    assert actual.shape == frames.shape
    assert np.abs(actual.astype(int) - frames).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_odd_sizes_lose_a_row_and_a_column(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", np.zeros((3, 33, 45, 3), np.uint8), fps=20)
    assert read(tmp_path / "video.mp4").shape == (3, 32, 44, 3)


def test_no_frames_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "video.mp4", [], fps=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("success", "colour"), [(True, SUCCESS_COLOUR), (False, FAILURE_COLOUR)])
def test_the_outcome_frames_the_picture(success: bool, colour: tuple[int, int, int]) -> None:
    frames = np.full((2, 84, 168, 3), 200, np.uint8)
    marked = list(mark_outcome(frames, "a text that is much longer than the picture is wide " * 3, success, scale=3))
    assert marked[0].shape == (84 * 3 + 32, 168 * 3 + 8, 3)
    assert (marked[0][[0, -1]] == colour).all()
    assert (marked[0][:, [0, -1]] == colour).all()
    assert (marked[0][28:-4, 4:-4] == 200).all()
    assert (marked[0][:28] != colour).any()  # the text, made to fit
    assert (marked[0][:, 4:6][:28] == colour).all()


def test_a_tile_waits_on_its_last_frame_until_all_are_over(tmp_path: Path) -> None:
    def plain(grey: int, frames: int) -> Iterator[np.ndarray]:
        return (np.full((40, 60, 3), grey + t, np.uint8) for t in range(frames))

    frames = list(tile([plain(10, 3), plain(60, 5), plain(110, 1), plain(160, 2), plain(210, 1)], 120))
    assert len(frames) == 5
    rows, columns = frames[0].shape[0] // 40, 120 // 60
    assert (rows, columns) == (3, 2)
    corners = [(x * 60 + 30, y * 40 + 20) for y in range(rows) for x in range(columns)]
    assert [int(frames[0][y, x, 0]) for x, y in corners] == [10, 60, 110, 160, 210, 255]
    assert [int(frames[-1][y, x, 0]) for x, y in corners] == [12, 64, 110, 161, 210, 255]


def test_a_video_is_read_back_frame_by_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", (np.full((32, 32, 3), 20 * t, np.uint8) for t in range(10)), fps=20)
    actual = [int(frame.mean().round()) for frame in read_video(tmp_path / "video.mp4")]
    assert actual == pytest.approx([20 * t for t in range(10)], abs=3)
