"""Cells through Ray: two at a time on one machine, one of them killed midway, and folders that come back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from prism_policy.errors import PrismError
from prism_policy.paper.ray_cluster import _do_remotely, _pack, _unpack, run_on_ray

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="needs prism-policy[cluster]")


@pytest.fixture(autouse=True)
def own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def write(folder: Path, seconds: float) -> bool:
    """A piece of work that says who does it, and takes its time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tries.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    (folder / "weights.safetensors").write_text("done")
    return True


def complain(folder: Path) -> bool:
    raise PrismError("the loss is not finite")


def collected(folders: list[Path], work: list[Callable[[Path], bool]], address: str = "local") -> dict[int, object]:
    actual: dict[int, object] = {}
    run_on_ray(address, folders, work, actual.__setitem__, gpus=0)
    return actual


@needs_ray
@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_one_that_complains_stops_no_other(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(4)]
    work = [partial(write, seconds=seconds) for seconds in (6.0, 0.5, 0.5)]

    def kill_the_first() -> None:
        tries = folders[0] / "tries.txt"
        while not tries.exists() or not tries.read_text().endswith("\n"):
            time.sleep(0.05)
        os.kill(int(tries.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    actual = collected(folders, [*work, complain])
    killer.join(timeout=10)
    assert {i: actual[i] for i in (0, 1, 2)} == {0: True, 1: True, 2: True}
    assert str(actual[3]) == "the loss is not finite"
    pids = (folders[0] / "tries.txt").read_text().split()
    assert len(pids) == 2
    assert pids[0] != pids[1]
    assert all((folder / "weights.safetensors").exists() for folder in folders[:3])
    assert not list(tmp_path.glob(".here-*"))


@needs_ray
@pytest.mark.slow
def test_what_the_cluster_never_has_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="expected a cluster with 0 GPUs and 4096 cores for a cell"):
        run_on_ray("local", [tmp_path / "a"], [partial(write, seconds=0.0)], print, gpus=0, cpus=4096)


@needs_ray
@pytest.mark.slow
def test_no_cluster_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match=r"no Ray cluster at 'auto' .* start one with `ray start --head`"):
        collected([tmp_path / "a"], [partial(write, seconds=0.0)], "auto")


@pytest.mark.skipif(ray is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match=r"pip install prism-policy\[cluster\]"):
        collected([tmp_path / "a"], [partial(write, seconds=0.0)])


def test_a_folder_comes_back_whole_without_what_only_training_needs(tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name in ("config.json", "weights.safetensors", "results/last/evaluate-s0/episodes.jsonl"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(name)
    (there / "checkpoints").mkdir()
    for name in ("last", "previous", "best"):
        (there / "checkpoints" / f"{name}.safetensors").write_text(name)
    here = tmp_path / "here"
    _unpack(_pack(there), here)
    names = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    assert names == {
        "config.json", "weights.safetensors", "results/last/evaluate-s0/episodes.jsonl", "checkpoints/best.safetensors"
    }  # fmt: skip
    assert (here / "weights.safetensors").read_text() == "weights.safetensors"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_machine_without_the_folder_works_in_one_of_its_own_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, there = tmp_path / "cache", tmp_path / "home" / "of" / "another" / "cell"
    monkeypatch.setenv("PRISM_CACHE", str(cache))
    done, archive = _do_remotely(partial(write, seconds=0.0), there, there.parent / ".here")
    assert done
    assert not there.exists()
    assert list(cache.iterdir()) == []
    _unpack(archive, tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"tries.txt", "weights.safetensors"}


def test_a_machine_that_has_the_folder_fills_it_and_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / ".here").touch()
    done, archive = _do_remotely(partial(write, seconds=0.0), tmp_path / "cell", tmp_path / ".here")
    assert (done, archive) == (True, b"")
    assert (tmp_path / "cell" / "weights.safetensors").exists()


def test_a_training_that_has_begun_is_sent_with_its_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "here" / "checkpoints").mkdir(parents=True)
    for name in ("last", "previous"):
        (tmp_path / "here" / "checkpoints" / f"{name}.safetensors").write_text(name)
    _unpack(_pack(tmp_path / "here"), tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").rglob("*.safetensors")] == ["last.safetensors"]
