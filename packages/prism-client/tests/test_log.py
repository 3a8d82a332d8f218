"""What was logged survives: cut off anywhere it is read up to there; a damaged middle is named; a kill loses little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import BOX, INTERFACE, LIMITS, Point, Steps, Wave

from prism_client.control.asking import DelayedAsking
from prism_client.control.log import EpisodeLog, read_episode
from prism_client.control.loop import ControlLoop, LoopOptions
from prism_client.errors import PrismError


def record(folder: Path, steps: int = 12) -> Point:
    robot = Point(Steps())
    asking: Any = DelayedAsking(Wave(), robot.clock, 0.03)
    with EpisodeLog(folder, {"robot": "fake"}) as log:
        ControlLoop(robot, asking, INTERFACE, LIMITS, BOX, LoopOptions(steps), log=log).run()
    return robot


def test_an_episode_is_read_as_it_was_executed(tmp_path: Path) -> None:
    robot = record(tmp_path / "a")
    header, steps, outcome = read_episode(tmp_path / "a")
    assert header == {"robot": "fake"}
    assert outcome is not None
    assert (outcome["ended"], len(steps)) == ("done", 12)
    sent = np.array([step["sent"] for step in steps if "sent" in step])
    np.testing.assert_array_equal(sent[:, :3], robot.goals.astype(np.float32))
    assert [step["step"] for step in steps] == list(range(12))
    images = np.random.default_rng(0)
    for step in steps:
        np.testing.assert_array_equal(step["images"]["front"], images.integers(0, 256, (16, 16, 3)))
    replayed = Point(Steps())  # the actions that were sent lead to the same states
    for step in steps:
        np.testing.assert_allclose(replayed.observe()["state"], step["state"])
        if "sent" in step:
            replayed.act(step["sent"])


def test_cut_off_at_any_byte_it_holds_the_whole_steps_before(tmp_path: Path) -> None:
    record(tmp_path / "a", 5)
    (tmp_path / "a" / "outcome.json").unlink()
    path = tmp_path / "a" / "steps.bin"
    data = path.read_bytes()
    whole = read_episode(tmp_path / "a").steps
    seen = set()
    for size in [*range(0, len(data), 97), len(data)]:
        for tail in (b"", b"\0" * 50):
            path.write_bytes(data[:size] + tail)
            episode = read_episode(tmp_path / "a")
            assert episode.outcome is None
            assert [s["step"] for s in episode.steps] == [s["step"] for s in whole[: len(episode.steps)]]
            seen.add(len(episode.steps))
    assert seen == set(range(6))


def test_a_damaged_middle_is_named(tmp_path: Path) -> None:
    record(tmp_path / "a", 5)
    path = tmp_path / "a" / "steps.bin"
    data = bytearray(path.read_bytes())
    data[20] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(PrismError, match="is damaged at step 0"):
        read_episode(tmp_path / "a")
    path.write_bytes(bytes(data[:20]))
    with pytest.raises(PrismError, match="holds 0 of 5 steps"):
        read_episode(tmp_path / "a")


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    record(tmp_path / "a", 2)
    with pytest.raises(PrismError, match="holds an episode already"):
        EpisodeLog(tmp_path / "a", {})
    with pytest.raises(PrismError, match="holds no episode"):
        read_episode(tmp_path)


def test_a_disk_that_fails_ends_the_episode_with_the_arm_held(tmp_path: Path) -> None:
    robot = Point(Steps())
    asking: Any = DelayedAsking(Wave(), robot.clock, 0.0)
    with EpisodeLog(tmp_path / "a", {}) as log:
        log._file.close()
        log.step({"step": -1})
        while log.error is None:
            time.sleep(0.01)
        loop = ControlLoop(robot, asking, INTERFACE, LIMITS, BOX, LoopOptions(50), log=log)
        with pytest.raises(PrismError, match=r"cannot write .*; free some space"):
            loop.run()
    assert (loop.outcome.ended, loop.outcome.steps) == ("fault", 1)
    assert robot.events[-1][0] == "hold"


KILLED = """
import sys, time
from pathlib import Path
from fakes import *
from prism_client.control.asking import DelayedAsking
from prism_client.control.log import EpisodeLog
from prism_client.control.loop import ControlLoop, LoopOptions
robot = Point()
asking = DelayedAsking(Wave(0.0), robot.clock, 0.0)
with EpisodeLog(Path(sys.argv[1]), {"robot": "fake"}) as log:
    print("go", flush=True)
    ControlLoop(robot, asking, INTERFACE, LIMITS, BOX, LoopOptions(10**6), log=log).run()
"""


def test_a_killed_process_leaves_an_episode_that_is_read(tmp_path: Path) -> None:
    record(tmp_path / "before")
    before = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "go\n"
        time.sleep(1.3)
        process.send_signal(signal.SIGKILL)
    episode = read_episode(tmp_path / "a")
    assert episode.outcome is None
    assert [step["step"] for step in episode.steps] == list(range(len(episode.steps)))
    assert len(episode.steps) > 5
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
