"""Demonstrations from the scripted experts, then their images: in parallel, cached by content, and safe against any kill.

Each finished episode is a small file of its own (a part), written whole or not at all; when all are there they become one
HDF5 file. Its folder's name is a digest of everything that decides the content, so a stale file is never used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config import DemoConfig, TaskConfig
from prism_policy.data.robomimic import demo_names, merge_demos, open_demos, write_demo
from prism_policy.errors import PrismError

Progress = Callable[[int, int], None]
"""Called with (done, total) when work begins and after each episode."""

_ENVS = Path(__file__).parent / "envs"
_DATA_FILE, _MANIFEST = "demos.hdf5", "manifest.json"


def default_cache_dir() -> Path:
    """`$PRISM_CACHE`, or `~/.cache/prism-policy`."""
    return Path(os.environ.get("PRISM_CACHE") or "~/.cache/prism-policy").expanduser()


def collect(
    task: TaskConfig,
    demos: DemoConfig,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Demonstrations of the task's expert as simulator states; the first `num_demos` successes in the order of episodes.

    The result depends on the configuration alone, not on the number of workers.

    Args:
        cache_dir: where results are kept; None is `default_cache_dir()`.
        workers: processes; None is one for each core.

    Returns:
        An HDF5 file in robomimic's layout. Its `data` group's attribute `tried` is the number of episodes it took.

    Raises:
        PrismError: the simulator is missing, the disk is full, a worker died, or the expert fails too often.
    """
    key = {
        "kind": "states",
        "task": task.name,
        "demos": dataclasses.asdict(demos),
        "source": _source_digest("episode.py", "robosuite.py", "experts.py"),
        "versions": _versions(),
    }

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        return _collect_parts(folder, pool, task, demos, progress or _quiet)

    return _cached(f"states-{task.name}", key, cache_dir, workers, build)


def render_demos(
    states: Path,
    task: TaskConfig,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """The demonstrations of `states` with the images of `task.cameras` and robomimic's low-dimensional observations added.

    Returns:
        An HDF5 file in robomimic's layout; the attribute `render` of its `data` group holds the render settings as JSON.

    Raises:
        PrismError: as `collect`; also an unreadable file, an unknown camera, no OpenGL.
    """
    with open_demos(states) as file:
        names = demo_names(file)
        env_args = str(file["data"].attrs["env_args"])
    key = {
        "kind": "images",
        "states": _sha256(states),
        "cameras": list(task.cameras),
        "render": dataclasses.asdict(task.render),
        "source": _source_digest("robosuite.py", "rendering.py"),
        "versions": _versions(),
    }
    report = progress or _quiet

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts = [folder / f"part_{i:06d}.hdf5" for i in range(len(names))]
        missing = [i for i, part in enumerate(parts) if _read_success(part) is None]
        done = len(parts) - len(missing)
        report(done, len(parts))
        pending = {pool.submit(_render_part, task, states, names[i], parts[i]) for i in missing}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
                report(done, len(parts))
        return parts, env_args, {"render": json.dumps(key["render"])}

    return _cached(f"images-{task.name}", key, cache_dir, workers, build)


def _collect_parts(
    folder: Path, pool: WorkerPool, task: TaskConfig, demos: DemoConfig, progress: Progress
) -> tuple[list[Path], str, dict[str, Any]]:
    def part(episode: int) -> Path:
        return folder / f"part_{episode:06d}.hdf5"

    outcomes: dict[int, bool] = {}
    pending: dict[Future[bool], int] = {}
    episode, most = 0, 20 + 3 * demos.num_demos
    while True:
        # Enough episodes are begun that all of them succeeding would do; so those begun are always the first ones.
        while sum(outcomes.values()) + len(pending) < demos.num_demos:
            if episode >= most:
                raise PrismError(
                    f"the expert of task {task.name!r} succeeded {sum(outcomes.values())} times in {episode} episodes with "
                    f"noise {demos.noise}, expected {demos.num_demos}; choose a smaller noise"
                )
            kept = _read_success(part(episode))
            if kept is None:
                pending[pool.submit(_collect_part, task, demos, episode, part(episode))] = episode
            else:
                outcomes[episode] = kept
            episode += 1
        progress(sum(outcomes.values()), demos.num_demos)
        if not pending:
            break
        finished, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            outcomes[pending.pop(future)] = future.result()
    chosen = [part(i) for i in sorted(outcomes) if outcomes[i]]
    with h5py.File(chosen[0]) as first:
        env_args = str(first.attrs["env_args"])
    return chosen, env_args, {"tried": episode, "noise": demos.noise, "seed": demos.seed}


# ---- in a worker process: one environment, kept for its lifetime ----------------------------------------------------------

_env: Any = None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()


def _follow_parent(parent: int) -> None:
    """A parent killed with -9 cannot end its workers; nobody should find them working on afterwards."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def environment(task: TaskConfig, render_images: bool) -> Any:
    global _env
    if _env is None:
        from prism_policy.envs.robosuite import RobosuiteEnv

        _env = RobosuiteEnv(task, render_images)
    return _env


def _collect_part(task: TaskConfig, demos: DemoConfig, episode: int, path: Path) -> bool:
    from prism_policy.envs.experts import EXPERTS, demonstrate

    env = environment(task, render_images=False)
    demo = demonstrate(env, demos, episode)
    dones = np.zeros(len(demo.actions), np.int64)
    dones[-1] = 1
    arrays = {
        "states": demo.states,
        "actions": demo.actions,
        "actions_expert": demo.actions_expert,
        "rewards": demo.rewards,
        "dones": dones,
        "stages": demo.stages,
    }
    attributes = {"model_file": env.model_xml, "episode": episode, "stage_names": list(EXPERTS[task.name].stages)}
    _write_part(path, arrays, attributes, demo.success, env.metadata_json())
    return demo.success


def _render_part(task: TaskConfig, states: Path, name: str, path: Path) -> None:
    from prism_policy.envs.robosuite import PROPRIO

    env = environment(task, render_images=True)
    with open_demos(states) as file:
        demo = file["data"][name]
        arrays = {key: demo[key][:] for key in demo if isinstance(demo[key], h5py.Dataset)}
        attributes = dict(demo.attrs)
    observations = [env.observe(state) for state in arrays["states"]]
    for camera in task.cameras:
        arrays[f"obs/{camera}_image"] = np.stack([o["images"][camera] for o in observations])
    proprio = np.stack([o["proprio"] for o in observations])  # (T, 9)
    columns = np.split(proprio, np.cumsum(list(PROPRIO.values()))[:-1], axis=1)
    arrays.update({f"obs/{key}": values for key, values in zip(PROPRIO, columns, strict=True)})
    _write_part(path, arrays, attributes, True, env.metadata_json())


# ---- parts and the cache ---------------------------------------------------------------------------------------------------


def _write_part(
    path: Path, arrays: dict[str, np.ndarray], attributes: dict[str, Any], success: bool, env_args: str
) -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        write_demo(file.create_group("demo"), arrays, attributes)
        file.attrs["success"] = success
        file.attrs["env_args"] = env_args
    _write_whole(path, memory.getbuffer())


def _write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file such that it is either complete or absent, whenever the process dies."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_success(part: Path) -> bool | None:
    """Whether the part's episode succeeded; None where there is no readable part."""
    try:
        with h5py.File(part) as file:
            return bool(file.attrs["success"])
    except (OSError, KeyError):
        return None


Build = Callable[[Path, "WorkerPool"], tuple[list[Path], str, dict[str, Any]]]
"""(folder, pool) -> parts in order, env_args, attributes of the merged file."""


def _cached(name: str, key: dict[str, Any], cache_dir: Path | None, workers: int | None, build: Build) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache_dir or default_cache_dir()).expanduser() / f"{name}-{digest}"
    data, manifest, parts = folder / _DATA_FILE, folder / _MANIFEST, folder / "parts"
    with _disk_full_is_an_error(folder):
        parts.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if manifest.exists():
                if _intact(data, manifest):
                    shutil.rmtree(parts, ignore_errors=True)
                    return data
                print(f"{data} is damaged (its checksum differs); making it again", flush=True)
                manifest.unlink()
            parts.mkdir(exist_ok=True)
            for leftover in parts.glob("*.tmp"):
                leftover.unlink()
            with WorkerPool(workers) as pool:
                chosen, env_args, attributes = build(parts, pool)
            temporary = folder / f"{_DATA_FILE}.tmp"
            merge_demos(chosen, temporary, env_args, attributes)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, data)
            _write_whole(manifest, json.dumps({"sha256": _sha256(data), **key}, indent=2).encode())
            shutil.rmtree(parts)
    return data


def _intact(data: Path, manifest: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_text())["sha256"] == _sha256(data))
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time builds in `folder`; the kernel frees the lock of a process that dies."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is making {folder}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_full_is_an_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # HDF5 reports the system's error inside its own message.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and f"errno = {errno.ENOSPC}" not in str(error):
            raise
        raise PrismError(
            f"the disk of {folder} is full; finished episodes are kept: free some space, or set PRISM_CACHE to a folder on "
            "another disk, and run again to go on"
        ) from error


class WorkerPool:
    """Worker processes, started with the first piece of work and ended with the block, whatever ends it."""

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self._executor is None:
            from prism_policy.envs.opengl import choose_opengl

            choose_opengl()  # once here, not in each worker
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
                os.environ.setdefault(name, "1")  # a worker is one core; more threads only wait for each other
            self._before = set(multiprocessing.active_children())
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
        return self._executor.submit(function, *arguments)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._executor is None:
            return
        if error is None:
            self._executor.shutdown()
            return
        children = set(multiprocessing.active_children()) - self._before
        self._executor.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        if isinstance(error, BrokenProcessPool):
            raise PrismError(
                "a simulator process died (out of memory, or killed); finished episodes are kept: run again to go on, with "
                "fewer workers if memory is short"
            ) from error


def _quiet(done: int, total: int) -> None:
    pass


def _versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in ("robosuite", "mujoco")}
    except importlib.metadata.PackageNotFoundError as error:
        raise PrismError(
            f"the simulator is not installed ({error.name} is missing); run `pip install prism-policy[sim]`"
        ) from error


def _source_digest(*names: str) -> str:
    return hashlib.sha256(b"".join((_ENVS / name).read_bytes() for name in names)).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
