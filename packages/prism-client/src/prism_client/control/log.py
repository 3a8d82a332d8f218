"""An episode on the disk: frames, actions wanted and sent, times, events. A power cut costs half a second of it.

A folder holds `header.json` (robot, policy, when), `steps.bin` and, once the episode has ended, `outcome.json`. A step
is eight bytes, its length and its CRC-32, and a zlib-compressed message (`msgpack_numpy`); a last step that was cut off
has never been there.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from prism_client.errors import PrismError
from prism_client.msgpack_numpy import pack, unpack
from prism_client.text import one_line, parsed_json

SYNC_S = 0.5
"""How often what was written is forced onto the disk [s]."""
MOST_WAITING = 1000
"""Steps that may wait for a slow disk."""
LARGEST_STEP = 2**28
_HEAD = struct.Struct("<II")


class Episode(NamedTuple):
    """What a folder of an episode holds."""

    header: dict[str, Any]
    steps: list[dict[str, Any]]
    outcome: dict[str, Any] | None
    """None: it was interrupted, by a crash or a power cut."""


class EpisodeLog:
    """Writes an episode in a thread of its own, so that the loop never waits for the disk.

    Usage::

        with EpisodeLog(folder, {"robot": ...}) as log:
            log.step({"step": 0, "images": {...}, "state": ..., "sent": ...})
            log.end({"ended": "done", "void": []})
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True)
            write_json(self.folder / "header.json", header)
            self._file = open(self.folder / "steps.bin", "xb")  # noqa: SIM115 (the thread closes it)
        except FileExistsError as error:
            raise PrismError(f"{self.folder} holds an episode already; choose another folder") from error
        except OSError as error:
            raise PrismError(f"cannot write {self.folder} ({error.strerror}); choose another folder") from error
        self.error: Exception | None = None
        """What kept a step from the disk."""
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="episode log", daemon=True)
        self._thread.start()

    def step(self, step: dict[str, Any]) -> None:
        """Have a step written: numbers, text, and arrays that nobody changes any more."""
        try:
            self._waiting.put_nowait(step)
        except queue.Full:
            self.error = self.error or PrismError(f"the disk of {self.folder} is too slow for these frames")

    def end(self, outcome: dict[str, Any]) -> None:
        """The episode is over; whole on the disk on return.

        Raises:
            PrismError: some of it could not be written.
        """
        self.close()
        if self.error is not None:
            raise PrismError(f"cannot write {self.folder} ({one_line(self.error, 200)}); free some space")
        try:
            write_json(self.folder / "outcome.json", outcome)
        except OSError as error:
            raise PrismError(f"cannot write {self.folder} ({error.strerror}); free some space") from error

    def close(self) -> None:
        """Write what waits."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _work(self) -> None:
        synced = time.monotonic()
        with self._file as file:
            while True:
                try:
                    step = self._waiting.get(timeout=SYNC_S)
                except queue.Empty:
                    step = {}
                try:
                    if step:
                        data = zlib.compress(pack(step), 1)
                        file.write(_HEAD.pack(len(data), zlib.crc32(data)) + data)
                    if step is None or time.monotonic() - synced > SYNC_S:
                        file.flush()
                        os.fsync(file.fileno())
                        synced = time.monotonic()
                except Exception as error:  # a full disk, or a step of something else than numbers
                    self.error = self.error or error
                if step is None:
                    return

    def __enter__(self) -> EpisodeLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_episode(folder: Path) -> Episode:
    """What was logged, up to the last whole step.

    Raises:
        PrismError: there is no episode, or it is damaged before its end.
    """
    folder = Path(folder)
    header = _read_json(folder / "header.json")
    if header is None:
        raise PrismError(f"{folder} holds no episode (no header.json)")
    steps, outcome = list(read_steps(folder)), _read_json(folder / "outcome.json")
    if outcome is not None and outcome.get("steps") not in (None, len(steps)):
        raise PrismError(f"{folder / 'steps.bin'} holds {len(steps)} of {outcome['steps']} steps; restore it")
    return Episode(header, steps, outcome)


def read_steps(folder: Path) -> Iterator[dict[str, Any]]:
    """The steps of an episode, one after the other; raises as `read_episode`."""
    path = Path(folder) / "steps.bin"
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise PrismError(f"cannot read {path} ({error.strerror})") from error
    with file:
        number, size = 0, path.stat().st_size
        while True:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            length, checksum = _HEAD.unpack(head)
            data = file.read(min(length, LARGEST_STEP))
            if not length or len(data) < length or zlib.crc32(data) != checksum:
                if file.tell() >= size or not any(file.read()):
                    return  # cut off; some file systems leave zeros
                raise PrismError(f"{path} is damaged at step {number}; restore it")
            try:
                yield unpack(zlib.decompress(data))
            except zlib.error as error:
                raise PrismError(f"{path} is damaged at step {number}; restore it") from error
            number += 1


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is whole or absent, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = parsed_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise PrismError(f"{path} is damaged ({one_line(error, 100)}); restore it or move it away") from error
    if not isinstance(value, dict):
        raise PrismError(f"{path}: expected an object; restore it or move it away")
    return value
