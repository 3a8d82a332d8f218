"""What each task is; no torch, no simulator. A file here declares a task, and `SPECS` lists it."""

from prism_policy.errors import PrismError
from prism_policy.tasks.adapted import adapted, is_adapted
from prism_policy.tasks.any_robosuite import PREFIX, any_robosuite
from prism_policy.tasks.can import CAN
from prism_policy.tasks.key_pick import KEY_PICK
from prism_policy.tasks.libero import LIBERO_SPECS
from prism_policy.tasks.lift import LIFT, LIFT_LADDER
from prism_policy.tasks.recorded import RECORDED
from prism_policy.tasks.spec import TaskSpec
from prism_policy.tasks.square import SQUARE
from prism_policy.tasks.stack import STACK
from prism_policy.tasks.tool_hang import TOOL_HANG
from prism_policy.utils.text import quoted

SPECS: dict[str, TaskSpec] = {
    spec.name: spec for spec in (LIFT, CAN, SQUARE, TOOL_HANG, STACK, KEY_PICK, *LIFT_LADDER, *LIBERO_SPECS)
}
"""Every simulated task and suite by its name."""


def task_spec(name: str) -> TaskSpec:
    """What is known of a task or suite; of `recorded`, whatever nothing simulates, nothing."""
    if name == RECORDED.name:
        return RECORDED
    if name.startswith(PREFIX):
        return any_robosuite(name)
    if is_adapted(name):
        return adapted(name)
    if name not in SPECS:
        single = "single tasks of a suite such as libero_spatial_3, robosuite:NAME of a dataset, gym:ID, "
        single += "MODULE:FUNCTION, and recorded"
        raise PrismError(f"unknown task {quoted(name)}; there are {', '.join(task_names())}, and {single}")
    return SPECS[name]


def task_names() -> list[str]:
    """Names of all tasks and suites, without the single tasks of the suites."""
    return [name for name, spec in SPECS.items() if not spec.suite]


def probe_tasks() -> list[str]:
    """Names of the tasks that have scenes for the spatial probe."""
    return [name for name, spec in SPECS.items() if spec.tracked]
