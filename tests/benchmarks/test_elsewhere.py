"""A benchmark ends with an error where a process of it dies or says nothing, and soon."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from elsewhere import Elsewhere, output_of


def double() -> Generator[object, int, None]:
    number = yield "about"
    while True:
        number = yield 2 * number


def death(when: str, how: str) -> Generator[object, int, None]:
    for moment in ("at the start", "in a step"):
        if when == moment:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "silent":
                time.sleep(600)
            raise ValueError(how)
        yield None


def nothing() -> Generator[object, int, None]:
    yield "not installed"


def test_a_variant_says_what_it_is_and_answers() -> None:
    variant = Elsewhere(double)
    assert (variant.about, variant(3), variant(4)) == ("about", 6, 8)
    assert Elsewhere(nothing).about == "not installed"


@pytest.mark.parametrize("when", ["at the start", "in a step"])
@pytest.mark.parametrize(
    ("how", "words"),
    [("killed", "killed by SIGKILL"), ("raises", "ended with exit code 1"), ("silent", "said nothing")],
)
def test_one_that_dies_or_hangs_ends_the_benchmark(when: str, how: str, words: str) -> None:
    def run() -> None:
        variant = Elsewhere(death, when, how, limit_s=2.0 if how == "silent" else 60.0)
        variant(1)

    with pytest.raises(SystemExit, match=words):
        run()


def test_a_command_that_fails_ends_it() -> None:
    assert output_of([sys.executable, "-c", "print(3)"]) == "3\n"
    with pytest.raises(SystemExit, match="exit code 3"):
        output_of([sys.executable, "-c", "raise SystemExit(3)"])
