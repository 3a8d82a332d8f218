"""Other processes of a benchmark: one that dies or says nothing ends it with an error instead of a wait for ever."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from prism_policy.envs.process import how_it_ended, worker_start

LIMIT_S = 1800.0
"""Longest wait for anything, a first step that compiles included [s]."""
Variant = Callable[..., Generator[Any, Any, None]]
"""Yields what there is to know of it, then, after each message that it is sent, the answer."""


class Elsewhere:
    """A variant in a process of its own: a call sends it a message and waits for the answer."""

    def __init__(self, variant: Variant, *arguments: Any, limit_s: float = LIMIT_S, one_thread: bool = False) -> None:
        self._limit_s = limit_s
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, variant, arguments), daemon=True)
        if one_thread:
            with worker_start():
                self._process.start()
        else:
            self._process.start()
        theirs.close()  # else its death would not end the wait for it
        self.about = self._answer()

    def __call__(self, message: Any = None) -> Any:
        """The answer."""
        with suppress(BrokenPipeError):  # `_answer` says how it ended
            self._connection.send(message)
        return self._answer()

    def end(self) -> None:
        """End its process, and free its memory."""
        self._process.terminate()
        self._process.join()

    def _answer(self) -> Any:
        if not self._connection.poll(self._limit_s):
            self._process.kill()
            sys.exit(f"a variant said nothing for {self._limit_s:.0f} s and was ended: nothing is printed of this part")
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            how = how_it_ended(self._process.exitcode)
            sys.exit(f"a variant's process {how} (its own words stand above): nothing is printed of this part")


def _serve(connection: Connection, variant: Variant, arguments: Sequence[Any]) -> None:
    answers = variant(*arguments)
    connection.send(next(answers))
    with suppress(EOFError, StopIteration):  # the parent is done, or there is nothing to ask
        while True:
            connection.send(answers.send(connection.recv()))


def output_of(command: Sequence[str], **options: Any) -> str:
    """What a command prints; one that fails or takes too long ends the benchmark."""
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, **options).stdout
    except subprocess.TimeoutExpired:
        sys.exit(f"{' '.join(command[1:3])} took longer than {LIMIT_S:.0f} s and was ended")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(command[1:3])} {how_it_ended(error.returncode)} (its own words stand above)")
