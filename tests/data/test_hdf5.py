"""What HDF5 files claim is not believed, and each cause has its own sentence."""

from __future__ import annotations

import fcntl
import resource
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from prism_policy.data import hdf5, probe
from prism_policy.data.hdf5 import array, open_hdf5
from prism_policy.errors import PrismError
from prism_policy.utils.text import one_line


def test_a_small_file_that_claims_much_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("contiguous", (10**9, 7), "f8")
        file.create_dataset("chunked", (10**9, 7), "f8", chunks=(1024, 7), compression="gzip")
        file.create_dataset("one_chunk", (4,), "f8", chunks=(2**28,), maxshape=(None,))
        file.create_dataset("fair", data=np.zeros((200, 84, 84, 3), np.uint8), compression="gzip", compression_opts=9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_hdf5(path) as file:
        for key in ("contiguous", "chunked", "one_chunk"):
            with pytest.raises(PrismError, match=f"{key}: claims .* MiB, of which the file holds"):
                array(file, key)
        assert not array(file, "fair", "uint8").any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_file_that_another_process_writes_is_said_to_be_locked(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with path.open("rb") as raw:
        fcntl.flock(raw, fcntl.LOCK_EX)
        with pytest.raises(PrismError, match="another process has it open for writing"):
            open_hdf5(path)


def test_a_missing_compression_filter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        space, plist = h5py.h5s.create_simple((8,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((8,))
        plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, plist)
    with open_hdf5(path) as file, pytest.raises(PrismError, match="compressed with filter 32001"):
        array(file, "x")


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="expected an HDF5 file, got a folder"):
        open_hdf5(tmp_path)
    with pytest.raises(PrismError, match="not found"):
        open_hdf5(tmp_path / "none.hdf5")


@pytest.mark.parametrize(("how", "said"), [("os.abort()", "crashes"), ("time.sleep(60)", "does not come to an end")])
def test_a_file_that_kills_the_library_kills_another_process(
    how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"import os, runpy, time\nprobe = runpy.run_path({probe.__file__!r})\nrun = probe['main'].__globals__\n"
    (tmp_path / "probe.py").write_text(f"{body}run.update(STUCK_S=1, walk=lambda path: {how})\nprobe['main']()\n")
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "__file__", str(tmp_path / "probe.py"))
    monkeypatch.setattr(hdf5, "_probe", hdf5._Probe())
    with pytest.raises(PrismError, match=f"HDF5's library {said} when it reads this file"):
        open_hdf5(path)


def test_the_probe_ends_when_nobody_asks_any_more() -> None:
    process = subprocess.Popen([sys.executable, "-P", probe.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() == 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_value_is_shown_on_one_short_line() -> None:
    assert one_line("a\nb\x1b[31m" + "x" * 500) == "a b?[31m" + "x" * 69 + "..."
