"""A frame's cost: robosuite's defaults against this library's settings, interleaved in one process.

python benchmarks/rendering.py [--task lift] [--resolution 84] [--rounds 20]
"""

from __future__ import annotations

import argparse
import statistics
import time

from prism_policy.config import presets
from prism_policy.config.settings import RenderConfig
from prism_policy.envs.rendering import Renderer
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks import probe_tasks


def main() -> None:
    """Print a table of milliseconds a frame, one row a setting and camera."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=probe_tasks(), default="lift")
    parser.add_argument("--resolution", type=int, default=84)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    size = arguments.resolution
    task = presets.task_config(arguments.task)
    env = RobosuiteEnv(task, render_images=False)
    env.reset(seed=0)
    plain = RenderConfig(size)
    settings = {
        "robosuite's defaults: 4x MSAA, shadows, reflections": (RenderConfig(size, 4, True, True), False),
        "no MSAA, no shadows, no reflections": (plain, False),
        "the same; out of view left out, what never moves kept (default here)": (plain, True),
    }
    renderers = {name: Renderer(env.model, config, shortcuts) for name, (config, shortcuts) in settings.items()}
    nothing = Renderer(env.model, plain, False)
    nothing._option.geomgroup[:] = 0
    renderers["nothing drawn: pose, clear, read back"] = nothing
    times: dict[tuple[str, str], list[float]] = {(n, c): [] for n in renderers for c in task.cameras}
    for round_ in range(arguments.rounds + 2):
        for _ in range(3):
            env.advance(env.action_space.sample())
        for (name, camera), seconds in times.items():
            started = time.perf_counter()
            renderers[name].pose(env.state[1 : 1 + env.model.nq])
            renderers[name].draw(camera)
            if round_ >= 2:  # the first ones compile shaders
                seconds.append(time.perf_counter() - started)
    print(f"| {task.name}, {size} px | camera | ms a frame: median (min to max) |\n|---|---|---|")
    for (name, camera), seconds in times.items():
        ms = [1000 * s for s in seconds]
        print(f"| {name} | {camera} | {statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f}) |")


if __name__ == "__main__":
    main()
