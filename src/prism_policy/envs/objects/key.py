"""The scene of KeyPick: robosuite's Lift with a key instead of the cube, in any pose flat on the table."""

from __future__ import annotations

import importlib
from typing import Any

from prism_policy.envs.simulators import robosuite

HALF_THICK = 0.006  # [m]
PARTS = (
    # name, middle (x, y), half of its size (x, y) [m]: 86 mm long
    ("bow", (-0.030, 0.0), (0.013, 0.013)),
    ("shaft", (0.013, 0.0), (0.030, 0.005)),
    ("bit", (0.034, -0.009), (0.005, 0.004)),
)


def register() -> None:
    """Make `KeyPick` known to robosuite."""
    known = robosuite.environments.base.REGISTERED_ENVS
    if "KeyPick" in known:
        return
    models, placement = (
        importlib.import_module(f"robosuite.{name}") for name in ("models", "utils.placement_samplers")
    )

    def load_model(self: Any) -> None:
        super(known["Lift"], self)._load_model()
        robot = self.robots[0].robot_model
        robot.set_base_xpos(robot.base_xpos_offset["table"](self.table_full_size[0]))
        arena = models.arenas.TableArena(self.table_full_size, self.table_friction, self.table_offset)
        arena.set_origin([0, 0, 0])
        self.cube = models.objects.CompositeObject(  # what Lift lifts
            name="key",
            total_size=[0.043, 0.013, HALF_THICK],
            geom_types=["box"] * len(PARTS),
            geom_names=[name for name, _, _ in PARTS],
            geom_locations=[(*middle, 0.0) for _, middle, _ in PARTS],
            geom_sizes=[(*half, HALF_THICK) for _, _, half in PARTS],
            geom_frictions=[(1.0, 0.005, 0.0001)] * len(PARTS),
            rgba=[0.85, 0.65, 0.13, 1.0],
            density=2000.0,
            locations_relative_to_center=True,
        )
        self.placement_initializer = placement.UniformRandomSampler(
            name="ObjectSampler",
            mujoco_objects=self.cube,
            x_range=[-0.06, 0.06],
            y_range=[-0.08, 0.08],
            rotation=None,  # any
            ensure_object_boundary_in_range=False,
            reference_pos=self.table_offset,
            z_offset=0.002,
            rng=self.rng,
        )
        self.model = models.tasks.ManipulationTask(arena, [robot], self.cube)

    # robosuite's metaclass registers it
    type(known["Lift"])("KeyPick", (known["Lift"],), {"_load_model": load_model})
