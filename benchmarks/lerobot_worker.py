"""LeRobot's side of lerobot_data.py, in a Python that has LeRobot: answers each line of standard input with seconds.

python benchmarks/lerobot_worker.py FOLDER FPS BACKEND PROCESSES

`windows N SEED`: N windows drawn at random; `all`: every frame once, in order. With PROCESSES 0 the dataset is read in
this process, else through a DataLoader with as many. BACKEND is torchcodec or pyav.
"""

from __future__ import annotations

import sys
import time

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader, Subset, default_collate

HORIZON = 16


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    folder, fps, backend, processes = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    frames = LeRobotDataset("local/benchmark", root=folder, video_backend=backend)
    past, future = [-1 / fps, 0.0], [i / fps for i in range(-1, HORIZON - 1)]
    stamps = {**dict.fromkeys([*frames.meta.camera_keys, "observation.state"], past), "action": future}
    windows = LeRobotDataset("local/benchmark", root=folder, delta_timestamps=stamps, video_backend=backend)
    print(f"{len(frames)} frames, {frames.meta.shapes[frames.meta.camera_keys[0]]}, {backend}", flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "windows":
            count, seed = map(int, numbers)
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randint(0, len(windows), (count,), generator=generator).tolist()
            dataset, indices = windows, chosen
        else:
            dataset, indices = frames, list(range(len(frames)))
        started = time.perf_counter()
        if processes:
            for _ in DataLoader(Subset(dataset, indices), batch_size=16, num_workers=processes):
                pass
        elif what == "windows":
            default_collate([dataset[i] for i in indices])
        else:
            for i in indices:
                dataset[i]
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
