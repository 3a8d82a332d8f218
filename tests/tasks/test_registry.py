"""What is declared of each task fits together, and what it names is there."""

import importlib
import subprocess
import sys

import pytest

from prism_policy.config.presets import task_config
from prism_policy.config.settings import TaskConfig, check_task, single_tasks
from prism_policy.errors import PrismError
from prism_policy.tasks import SPECS, probe_tasks, task_names, task_spec
from prism_policy.tasks.lift import LIFT_LADDER
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec

REPRESENTATIVES = [SPECS[name] for name in (*task_names(), "libero_spatial_3", "libero_90_89")]
ids = {"ids": lambda spec: spec.name}


@pytest.mark.parametrize("spec", REPRESENTATIVES, **ids)
def test_a_spec_is_consistent(spec: TaskSpec) -> None:
    assert SPECS[spec.name] is spec
    assert len(spec.phases) == len(spec.stages)
    assert set(spec.cameras) <= set(spec.simulator.cameras)
    assert {thing.body for thing in spec.tracked} <= set(spec.mask_bodies)
    assert set(spec.lift_bodies) <= set(spec.mask_bodies)
    check_task(task_config(spec.name))


def test_experts_are_where_the_specs_say() -> None:
    pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
    for spec in REPRESENTATIVES:
        module, _, name = spec.expert.partition(":")
        assert getattr(importlib.import_module(module), name).stages


def test_suites_and_their_tasks_name_one_another() -> None:
    for name in task_names():
        for number, member in enumerate(SPECS[name].members):
            spec = SPECS[member]
            assert (spec.suite, spec.number, spec.members) == (name, number, ())
            assert spec.instruction
            assert spec.max_steps == SPECS[name].max_steps
    assert len(SPECS) == 6 + len(LIFT_LADDER) + 5 + 130


def test_variations_have_names_of_their_own() -> None:
    """A file says which environment recorded it by that name alone."""
    names = [spec.env_name for spec in SPECS.values() if spec.simulator == ROBOSUITE]
    assert len(set(names)) == len(names)
    assert all(spec.changes and spec.varies == "Lift" for spec in LIFT_LADDER)
    assert not any(spec.varies or spec.changes for spec in SPECS.values() if spec not in LIFT_LADDER)


def test_the_probe_has_scenes_of_robosuites_tasks() -> None:
    assert probe_tasks() == [name for name, spec in SPECS.items() if spec.simulator == ROBOSUITE]


def test_a_single_task_of_a_suite_is_a_task_like_any_other() -> None:
    task = task_config("libero_spatial_3")
    assert single_tasks(task) == (task,)
    assert (task.max_steps, task.render.resolution) == (280, 128)
    assert task in single_tasks(task_config("libero_spatial"))


def test_an_unknown_task_is_named_with_those_there_are() -> None:
    for call in (task_spec, task_config, lambda name: check_task(TaskConfig(name))):
        with pytest.raises(PrismError, match=r"unknown task 'juggle'; there are lift, can, .*such as libero_spatial_3"):
            call("juggle")


def test_actions_that_a_task_lacks_are_refused() -> None:
    with pytest.raises(PrismError, match=r"task.action_mode: expected 'delta' for libero_10_2, got 'absolute'"):
        check_task(TaskConfig("libero_10_2", action_mode="absolute"))


def test_the_tasks_are_listed_without_numpy() -> None:
    """The command line would wait for it."""
    program = "import sys, prism_policy.tasks; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
