from pathlib import Path

import av
import numpy as np
import pytest

from prism_policy.video import FAILURE_COLOUR, SUCCESS_COLOUR, mark_outcome, write_video


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_video_holds_the_frames_that_went_in(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    frames = np.stack([np.stack([2 * x + t, 3 * y, np.full_like(x, 90)], -1) for t in range(12)]).astype(np.uint8)
    write_video(tmp_path / "video.mp4", frames, fps=20)
    found = read(tmp_path / "video.mp4")
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 4
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
