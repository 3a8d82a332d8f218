"""Files appear whole and with the user's permissions; locks exclude other processes."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prism_policy.errors import PrismError
from prism_policy.utils.files import atomic, file_lock, folder_lock


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.zeros(2)}, temporary)
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_file_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a") as temporary:
        temporary.write_text(f"new{1 / 0}")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_lock_excludes_others_and_dies_with_its_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from prism_policy.utils.files import file_lock\n"
    code += "with file_lock(Path(sys.argv[1])) as locked: print(locked, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "True\n"
    with file_lock(tmp_path / ".lock") as locked:
        assert not locked
    with (
        pytest.raises(PrismError, match=f"another process is training {tmp_path}; wait for it"),
        folder_lock(tmp_path, "training"),
    ):
        pass
    other.kill()
    other.wait()
    with file_lock(tmp_path / ".lock") as locked:
        assert locked


def test_one_waits_for_a_lock_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, flock = [], fcntl.flock

    def busy_at_first(file: object, options: int) -> None:
        calls.append(options)
        if len(calls) == 1:
            raise BlockingIOError
        flock(file, options)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", busy_at_first)
    with file_lock(tmp_path / "lock", "waiting for another") as locked:
        assert locked
    assert calls == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert capsys.readouterr().out == "waiting for another\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(file: object, options: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(PrismError, match=r"\.lock: its file system has no locks .*choose a folder on another disk"),
        folder_lock(tmp_path, "training"),
    ):
        pass


def test_importing_leaves_the_umask_and_the_optimizers_alone() -> None:
    code = """
import os, torch
set_umask, calls = os.umask, []
os.umask = lambda mask: calls.append(mask) or set_umask(mask)
import prism_policy.policies, prism_policy.models.packed, prism_policy.utils.files, prism_policy.run_folder
from torch.optim import optimizer
print(calls, len(optimizer._global_optimizer_post_hooks))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[] 0\n"
