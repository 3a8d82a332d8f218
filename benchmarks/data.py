"""How fast windows come out of a dataset: this library's frames against a plain copy, LeRobotDataset and robomimic's.

python benchmarks/data.py [--demos 100] [--steps 150] [--resolution 84] [--threads 1] [--rounds 7]

The same random demonstrations (two cameras) are written in each library's own format. A batch is 512 windows of two
frames a camera and 16 actions; the others, as their users call them, hand out one window at a time and collate, in one
process, and join where they can be imported. LeRobot's images are stored as PNG here; as video they come slower still.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from elsewhere import output_of
from others import lenient_torchvision
from timing import in_turn, ms, ratio
from torch import Tensor

from prism_policy.data.frames import open_frames
from prism_policy.data.robomimic import usual_state, write_demo
from prism_policy.data.source import RobomimicSource
from prism_policy.data.windows import Windows
from prism_policy.probe.encoder_cost import device_name
from prism_policy.utils.memory import keep_freed_memory

CAMERAS = ("agentview", "robot0_eye_in_hand")
LOW_DIM = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
BATCH, HORIZON, N_OBS = 512, 16, 2


def write_hdf5(path: Path, arguments: argparse.Namespace) -> None:
    """Random demonstrations in robomimic's layout, not compressed: noise would not shrink."""
    rng = np.random.default_rng(0)
    size = arguments.resolution
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_group("data")
        for i in range(arguments.demos):
            demo = data.create_group(f"demo_{i}")
            arrays: dict[str, Any] = {"actions": rng.uniform(-1, 1, (arguments.steps, 7))}
            arrays |= {f"obs/{key}": rng.normal(size=(arguments.steps, n)) for key, n in LOW_DIM.items()}
            arrays |= {"states": rng.normal(size=(arguments.steps, 32)), "rewards": np.zeros(arguments.steps)}
            arrays["dones"] = np.zeros(arguments.steps, np.int64)
            write_demo(demo, arrays, {})
            for camera in CAMERAS:
                frames = rng.integers(0, 256, (arguments.steps, size, size, 3), np.uint8)
                demo.create_dataset(f"obs/{camera}_image", data=frames)
        data.attrs["total"], data.attrs["env_args"] = arguments.demos * arguments.steps, "{}"


def robomimic_windows(path: Path, cache_mode: str) -> Callable[[Tensor], object] | None:
    """Robomimic's SequenceDataset, all of it in memory, its fastest setting."""
    try:
        with lenient_torchvision():
            import robomimic.utils.obs_utils as obs_utils
            from robomimic.utils.dataset import SequenceDataset
    except ImportError as error:
        print(f"robomimic is left out ({error}).\n")
        return None
    keys = {"rgb": [f"{c}_image" for c in CAMERAS], "low_dim": list(LOW_DIM)}
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": keys})
    dataset = SequenceDataset(
        str(path),
        [*keys["rgb"], *keys["low_dim"]],
        ("actions",),
        frame_stack=N_OBS,
        seq_length=HORIZON,
        hdf5_cache_mode=cache_mode,
        load_next_obs=False,
    )
    return lambda indices: torch.utils.data.default_collate([dataset[int(i)] for i in indices])


def lerobot_windows(path: Path, folder: Path) -> Callable[[Tensor], object] | None:
    """LeRobotDataset with two frames and 16 actions an item."""
    try:
        with lenient_torchvision():
            from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        print(f"LeRobot is left out ({error}).\n")
        return None
    with h5py.File(path) as file:
        demos = [file["data"][name] for name in list(file["data"])[:10]]  # writing PNGs is slow; items cost the same
        shape = demos[0][f"obs/{CAMERAS[0]}_image"].shape[1:]
        images = {
            f"observation.images.{c}": {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
            for c in CAMERAS
        }
        vectors = {
            "observation.state": {"dtype": "float32", "shape": (9,), "names": None},
            "action": {"dtype": "float32", "shape": (7,), "names": None},
        }
        written = LeRobotDataset.create("local/benchmark", 20, {**images, **vectors}, folder, use_videos=False)
        for demo in demos:
            state = np.concatenate([demo[f"obs/{key}"][:] for key in LOW_DIM], axis=1).astype(np.float32)
            for t, action in enumerate(demo["actions"][:].astype(np.float32)):
                frame = {f"observation.images.{c}": demo[f"obs/{c}_image"][t] for c in CAMERAS}
                written.add_frame({**frame, "observation.state": state[t], "action": action, "task": "benchmark"})
            written.save_episode()
        written.finalize()
    past, future = [-0.05, 0.0], [0.05 * i for i in range(-1, HORIZON - 1)]
    stamps = {**dict.fromkeys(images, past), "observation.state": past, "action": future}
    dataset = LeRobotDataset("local/benchmark", folder, delta_timestamps=stamps)
    return lambda indices: torch.utils.data.default_collate([dataset[int(i) % len(dataset)] for i in indices])


def copy_of_as_many_bytes(windows: Windows) -> Callable[[Tensor], object]:
    """Copies a batch's bytes from contiguous blocks all over the frames: what memory can do at best."""
    flat = {c: x.flatten(1) for c, x in windows.frames.images.items()}
    block = BATCH * N_OBS // 16

    def copy(indices: Tensor) -> list[Tensor]:
        starts = (indices[:16] % (len(windows.frames) - block)).tolist()
        return [torch.cat([x[s : s + block] for s in starts]) for x in flat.values()]

    return copy


def numpy_take(windows: Windows) -> Callable[[Tensor], object]:
    """The frames of a batch, as numpy copies them."""
    flat = {c: x.flatten(1).numpy() for c, x in windows.frames.images.items()}
    return lambda indices: [x.take(windows.observed[indices].flatten().numpy(), axis=0) for x in flat.values()]


def open_alone(path: str, cache: str) -> None:
    """Print seconds to open the cached frames and the process's peak memory beyond its start [bytes], in a process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    source = RobomimicSource(Path(path))
    schema = source.schema.select(cameras=CAMERAS, state=usual_state(source.schema))
    frames = open_frames(source, schema, Path(cache))
    opened = time.perf_counter() - started
    for images in frames.images.values():
        images.view(-1)[::4096].max()  # touches every page
    print(opened, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, frames.nbytes)


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--resolution", type=int, default=84)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.open:
        open_alone(*arguments.open)
        return
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demos.hdf5"
        write_hdf5(path, arguments)
        started = time.perf_counter()
        source = RobomimicSource(path)
        schema = source.schema.select(cameras=CAMERAS, state=usual_state(source.schema))
        frames = open_frames(source, schema, Path(folder))
        unpacked = time.perf_counter() - started
        windows = Windows(frames, HORIZON, N_OBS, 8)
        command = [sys.executable, __file__, "--open", str(path), folder]
        opened, peak, raw = map(float, output_of(command).split())
        print(
            f"{device_name(device)}; {arguments.demos} demonstrations of {arguments.steps} steps at "
            f"{arguments.resolution} px, {raw / 1e9:.2f} GB; unpacked in {unpacked:.1f} s "
            f"({raw / unpacked / 1e6:.0f} MB/s), opened again in "
            f"{1000 * opened:.0f} ms; peak memory with every frame touched {peak / raw:.2f} x the raw bytes.\n"
        )
        generator = torch.Generator().manual_seed(0)
        ours = {
            "a copy of as many bytes in 16 blocks": copy_of_as_many_bytes(windows),
            "the same frames by numpy's `take`": numpy_take(windows),
            "`Windows.batch`, actions and mask included": windows.batch,
        }
        draw = lambda: torch.randint(0, len(windows), (BATCH,), generator=generator)  # noqa: E731
        with keep_freed_memory():  # as in training
            fast = in_turn({name: lambda f=f: f(draw()) for name, f in ours.items()}, arguments.rounds * 5, device)
        others = {
            f"robomimic `SequenceDataset`, cache {mode}": robomimic_windows(path, mode) for mode in ("low_dim", "all")
        }
        others["`LeRobotDataset`, PNG"] = lerobot_windows(path, Path(folder) / "lerobot")
        few = 64  # windows; one takes milliseconds
        slow = in_turn(
            {name: lambda f=f: f(draw()[:few]) for name, f in others.items() if f is not None},
            arguments.rounds,
            device,
            1,
        )
        print("| 512 windows, two cameras | ms | x the copy | windows/s | throughput x |")
        print("|---|---|---|---|---|")
        copy, _, batch = fast.values()
        rate = BATCH / np.median(batch)
        for name, times in fast.items():
            print(f"| {name} | {ms(times)} | {ratio(times, copy)} | {BATCH / np.median(times):.0f} | |")
        for name, times in slow.items():
            other = few / float(np.median(times))
            print(f"| {name} | {1000 * BATCH / other:.0f} | | {other:.0f} | ours {rate / other:.0f} |")


if __name__ == "__main__":
    main()
