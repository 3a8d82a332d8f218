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
from prism_policy.utils import files
from prism_policy.utils.files import atomic, default_cache_dir, disk_errors, file_lock, folder_lock, scratch, sweep


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


WRITER = """
import sys
from pathlib import Path
from prism_policy.utils.files import atomic

with atomic(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    input()
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_leaves_the_next_one_removes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_swept", set())
    killed, alive = writer(tmp_path / "a"), writer(tmp_path / "b")
    killed.kill()
    killed.wait()
    others = [".prism-notes.tmp", "x.tmp", ".prism-0123abcd.tmp.txt"]
    for name in others:
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.glob(".prism-????????.tmp"))) == 2
    with atomic(tmp_path / "c") as temporary:
        temporary.write_text("whole")
    assert len(list(tmp_path.glob(".prism-????????.tmp"))) == 1  # of the one that is at it
    assert alive.stdin
    alive.stdin.write("\n")
    alive.stdin.close()
    assert alive.wait(timeout=30) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["b", "c", *others])
    assert (tmp_path / "b").read_text() == "half"


def test_opening_a_folder_removes_what_was_left_anywhere_in_it(tmp_path: Path) -> None:
    killed = writer(tmp_path / "videos" / "last" / "a.mp4")
    killed.kill()
    killed.wait()
    assert list(tmp_path.rglob("*.tmp"))
    with folder_lock(tmp_path, "training"):
        assert not list(tmp_path.rglob("*.tmp"))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]  # the lock's file is gone, too


def test_without_locks_only_what_is_old_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, options: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    new, old = (tmp_path / f".prism-0000000{i}.tmp" for i in range(2))
    for folder in (new, old):
        folder.mkdir()
        (folder / ".lock").touch()
    os.utime(old, (1e9, 1e9))
    with atomic(tmp_path / "a") as temporary:
        temporary.write_text("x")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [new.name, "a"]


def test_a_temporary_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, calls = files._acquire, []

    def late(path: Path, **options: bool) -> int | None:
        calls.append(path)
        if len(calls) == 1:
            path.parent.rmdir()  # as another process's sweep does
        return acquire(path, **options)

    monkeypatch.setattr(files, "_acquire", late)
    with scratch(tmp_path) as folder:
        assert folder.is_dir()
        assert len(calls) == 2
    assert not list(tmp_path.iterdir())


def test_of_many_who_want_a_lock_one_has_it_at_a_time(tmp_path: Path) -> None:
    """The lock's file is removed by each that held it: nobody may hold one that others no longer see."""
    code = "import sys, time; from pathlib import Path; from prism_policy.utils.files import file_lock\n"
    code += "place = Path(sys.argv[1])\n"
    code += "for _ in range(40):\n  with file_lock(place / 'lock', ' '):\n"
    code += "    (place / 'held').mkdir(); time.sleep(0.0005); (place / 'held').rmdir()"
    run = [sys.executable, "-c", code, str(tmp_path)]
    crowd = [subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)]
    assert [p.communicate(timeout=60)[1] for p in crowd] == [b""] * 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [1, 200, 255])
def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path: Path, length: int) -> None:
    with atomic(tmp_path / ("x" * length)) as temporary:
        temporary.write_text("x")
    assert [len(p.name) for p in tmp_path.iterdir()] == [length]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk of"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left on the disk of"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the disk of"),
        (OSError("Can't write data (file write failed: errno = 122, error message = 'x')"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write .* choose a folder you may write to"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "cannot write"),
        (OSError(errno.EIO, "Input/output error"), "cannot write"),
    ],
)
def test_a_disks_trouble_is_one_sentence(tmp_path: Path, error: Exception, sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence), disk_errors(tmp_path / "x"):
        raise error


def test_a_file_in_the_way_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x", tmp_path / ("x" * 256)):
        with pytest.raises(PrismError, match=r"cannot write .* choose a folder"), atomic(path):
            pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(PrismError, match=r"cannot write .* choose a folder"), atomic(tmp_path / "folder") as temporary:
        temporary.write_text("x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_the_caches_trouble_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "file"))
    with pytest.raises(PrismError, match="set PRISM_CACHE to a folder you may write to"):
        files.write_text(default_cache_dir() / "a" / "b", "x")
    monkeypatch.delenv("PRISM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(PrismError, match="set PRISM_CACHE to a folder you may write to"):
        files.write_text(default_cache_dir() / "a" / "b", "x")
    for nowhere in ("/dev/null/x", "/proc/nowhere"):
        monkeypatch.setenv("PRISM_CACHE", nowhere)
        with pytest.raises(PrismError, match="set PRISM_CACHE to a folder you may write to"):
            files.write_text(default_cache_dir() / "a" / "b", "x")
    monkeypatch.delenv("PRISM_CACHE")

    def nobody(*_: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(PrismError, match="no home folder for the cache; set PRISM_CACHE"):
        default_cache_dir()
