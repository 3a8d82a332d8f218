"""What is known of a task that can be simulated: one `TaskSpec` each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CONTROL_HZ = 20
"""Of all demonstrations that this library makes or reads: frames and actions are 50 ms apart."""

Check = Callable[[Any, Sequence[float]], tuple[bool, ...]]
"""(environment, heights of the bodies to lift at the start [m]) -> which stages hold now, all but the last one."""


@dataclass(frozen=True)
class Simulator:
    """What simulates a task."""

    name: str
    environment: str
    """Its `gymnasium.Env` as "module:Class"; the constructor takes a `TaskConfig` and `render_images`."""
    package: str  # what is imported, to see whether it is there
    extra: str  # of this distribution, which installs it
    distributions: tuple[str, ...]  # whose versions decide what comes out of a simulation
    cameras: tuple[str, ...] = (
        "agentview", "frontview", "birdview", "sideview", "robot0_robotview", "robot0_eye_in_hand"
    )  # fmt: skip
    """All cameras of its scenes."""


NO_SIMULATOR = Simulator("", "", "", "", (), ())
"""Of what was recorded elsewhere, such as on a robot."""
_PACKAGES = ("robosuite", "mujoco")
ROBOSUITE = Simulator("robosuite", "prism_policy.envs.robosuite:RobosuiteEnv", "robosuite", "sim", _PACKAGES)
LIBERO = Simulator("LIBERO", "prism_policy.envs.libero:LiberoEnv", "libero", "libero", (*_PACKAGES, "rpent-libero"))


@dataclass(frozen=True)
class Tracked:
    """Something in a scene whose pose the spatial probe asks for."""

    name: str
    body: str  # MuJoCo's name
    heading: int  # axis of the body that lies flat and gives its angle: 0 is x, 1 y, 2 z
    folds: int
    """Number of turns about the vertical after which it looks the same; 0 is any turn, so that it has no angle."""


@dataclass(frozen=True)
class TaskSpec:
    """A task, or a suite of several (`members`), whose fields are those of each of its tasks."""

    name: str
    """Short, without spaces or slashes, such as tool_hang or libero_spatial_3."""
    simulator: Simulator
    env_name: str
    """The simulator's own name of it."""
    check: Check
    stages: tuple[str, ...]
    """How far an episode can come, in order; the last one is the simulator's success."""
    phases: tuple[str, ...]
    """What has to be done until each of the stages is reached."""
    expert: str
    """The scripted expert as "module:Class"."""
    expert_version: int = 1
    """Version of the expert's demonstrations. Raise it when the simulation, the expert or the disturbances change what
    comes out at a fixed seed: users' cached demonstrations are made anew then, and only then."""
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    """Cameras the policy sees by default, the scene's first."""
    max_steps: int = 400
    """Steps after which a rollout counts as failed (20 steps a second)."""
    resolution: int = 84
    """Width and height of a frame by default [px]."""
    action_modes: tuple[str, ...] = ("delta", "absolute")
    """What its actions may say, see `TaskConfig.action_mode`."""
    num_demos: int = 200
    """Demonstrations to collect by default."""
    noise: float = 0.5
    """Strength of the disturbances in them by default."""
    nano_steps: int = 1500
    """Updates of the preset `nano`."""
    lift_bodies: tuple[str, ...] = ()
    """MuJoCo's names of the bodies to lift, where they are the same in every episode."""
    mask_bodies: tuple[str, ...] = ()
    """Bodies that the task is about: what is moved, and what it has to fit on or into. Saliency is measured on them."""
    tracked: tuple[Tracked, ...] = ()
    """What the spatial probe asks for, besides the hand; without any there is no probe of this task."""
    spread: float = 0.0
    """The probe's scenes move objects by up to this from where the task puts them, along x and y [m]."""
    any_robot: bool = False
    """Its robot, and so what state and actions are, is that of the demonstrations."""
    suite: str = ""
    """The suite it belongs to."""
    number: int = 0
    """Its place in the suite, from 0."""
    members: tuple[str, ...] = ()
    """Of a suite: the names of its tasks."""
    varies: str = ""
    """The simulator's own name of the task of which this is a variation; empty is none."""
    scene: str = ""
    """What makes the simulator know `env_name`, as "module:function"; empty where it knows it by itself."""
    changes: tuple[tuple[str, str, str], ...] = ()
    """What of that task's model is otherwise: (element's name, attribute, value), as in MuJoCo's XML."""
    wordings: tuple[str, ...] = ()
    """Sentences that say what to do; the first one is what language-conditioned policies get."""

    @property
    def own_robot(self) -> bool:
        """Whether it says itself what state and actions are; else the demonstrations do."""
        return self.simulated and not self.any_robot

    @property
    def simulated(self) -> bool:
        """Whether there is a simulator of it."""
        return self.simulator != NO_SIMULATOR

    @property
    def instruction(self) -> str:
        """What to do, in words; "" where nothing is said."""
        return self.wordings[0] if self.wordings else ""
