"""The policies of trials: behind a server somewhere, or a run folder that is served here meanwhile."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prism_policy.errors import PrismError
from prism_policy.run_folder import read_run
from prism_policy.utils.text import one_line, quoted


def parse_policies(said: tuple[str, ...]) -> dict[str, str]:
    """Names and places of `NAME=PLACE`; a name is part of a folder's.

    Raises:
        PrismError: fewer than one, a name twice, or what is no such pair; a run folder that is none.
    """
    policies: dict[str, str] = {}
    for one in said:
        name, equals, place = one.partition("=")
        if not equals or not place or not re.fullmatch(r"[\w.-]{1,40}", name) or name.startswith("."):
            raise PrismError(f"--policies: expected NAME=RUN or NAME=ws://SERVER:PORT, got {quoted(one)}")
        if name in policies:
            raise PrismError(f"--policies: {quoted(name)} is there twice; each needs a name of its own")
        policies[name] = place
    if not policies:
        raise PrismError("--policies: expected NAME=RUN or NAME=ws://SERVER:PORT, such as prism=runs/prism, got none")
    for place in policies.values():
        if not is_address(place):
            read_run(Path(place))
    return policies


def is_address(place: str) -> bool:
    """Whether it is a server's address."""
    return place.startswith(("ws://", "wss://"))


@contextmanager
def addresses(policies: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Each policy's address; those of run folders are served on this machine until the block ends."""
    with ExitStack() as stack:
        yield {
            name: place if is_address(place) else stack.enter_context(_served(Path(place)))
            for name, place in policies.items()
        }


@contextmanager
def _served(run: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "prism_policy", "serve", str(run), "--port", "0"]
    # Of a session of its own: Ctrl-C is for the arm, and the server stays until the arm holds.
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            while line := process.stdout.readline():
                if found := re.search(r" at (ws://\S+)", line):
                    yield found[1]
                    return
            process.wait()
            said.seek(0)
            raise PrismError(f"{run} cannot be served: {one_line(said.read().removeprefix('prism: '), 300)}")
        finally:
            process.terminate()
