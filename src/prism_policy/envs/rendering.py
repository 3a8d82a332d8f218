"""Frames of a MuJoCo model off screen, as a function of the joint positions and the settings alone.

The renderer keeps its own copy of the model and its own data, so that drawing never touches the simulation: after a
control step robosuite's derived quantities lag the joints by one 2 ms substep, and refreshing them in place would
change the solver's warm start and with it the trajectory.
"""

from __future__ import annotations

import atexit
import copy
import itertools
from dataclasses import dataclass

import numpy as np

from prism_policy.config.settings import RenderConfig
from prism_policy.envs.simulators import mujoco, opengl_context
from prism_policy.errors import PrismError

HIDDEN_GROUP = 5  # geom group that is never drawn; geoms out of view are moved there


@dataclass(frozen=True)
class Background:
    """What a camera that never moves sees of all that never moves."""

    poses: np.ndarray
    """Of all this, and of the lights."""
    frame: np.ndarray
    """uint8 (size, size, 3), row 0 at the bottom."""
    depth: np.ndarray
    """OpenGL's depth buffer, float32 (size, size), row 0 at the bottom."""


class Renderer:
    """Draws fixed cameras of a model, of which it makes a copy.

    `shortcuts` change no pixel and halve the cost, which is in the vertices. Geoms whose bounding box lies outside the
    camera's view are left out. What never moves, such as the robot's pedestal, is drawn once for a camera that does not
    move either, and kept with its depths; then only the rest is drawn, and shown where it is nearer.
    """

    def __init__(self, model: mujoco.MjModel, settings: RenderConfig, shortcuts: bool = True) -> None:
        self.settings = settings
        self.model = copy.copy(model)
        self.data = mujoco.MjData(self.model)
        # An object outside the view may still throw a shadow or be mirrored into it.
        self.shortcuts = shortcuts and not settings.shadows and not settings.reflections
        self._groups = self.model.geom_group.copy()
        self._still = self.model.body_weldid[self.model.geom_bodyid] == 0  # welded to the world
        self._transparent: np.ndarray | None = None
        self._backgrounds: dict[tuple[int, int], Background] = {}
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))  # (8, 3)
        centre, half = self.model.geom_aabb[:, None, :3], self.model.geom_aabb[:, None, 3:]
        self._corners = centre + signs * half  # (ngeom, 8, 3), in the geom's frame
        self._unbounded = self.model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE

        visual = self.model.vis
        visual.quality.offsamples = settings.msaa
        visual.quality.shadowsize = 4096 if settings.shadows else 0
        visual.global_.offwidth = visual.global_.offheight = settings.resolution
        self._gl, self._context = opengl_context(self.model, settings.resolution)
        atexit.register(self.close)  # left to __del__, it would come after OpenGL's own end, with a traceback
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self.model, maxgeom=self.model.ngeom + self.model.nsite + 100)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = settings.shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = settings.reflections
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = (0, 1, 1, 0, 0, 0)  # robosuite's choice: 0 holds collision shapes
        self._perturb = mujoco.MjvPerturb()

    def pose(self, qpos: np.ndarray) -> mujoco.MjData:
        """Place everything at joint positions `qpos` (nq,); returns the data with body, site and camera poses."""
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return self.data

    def draw(self, camera: str, resolution: int | None = None) -> np.ndarray:
        """Draw the pose last set: uint8 (H, W, 3), row 0 at the top."""
        return self._render(camera, resolution or self.settings.resolution)

    def segment(self, camera: str) -> np.ndarray:
        """Index of the geom that each pixel of `draw` shows, -1 for none: int32 (H, W), row 0 at the top."""
        if self.settings.msaa:
            raise ValueError("expected a renderer without anti-aliasing, whose pixels show one geom each")
        flags, sites = self._scene.flags, self._option.sitegroup.copy()
        try:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
            self._option.sitegroup[:] = 0  # robosuite's sites are invisible marks, which would have a number, too
            colours = self._render(camera, self.settings.resolution).astype(np.int32)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
            self._option.sitegroup[:] = sites
        numbers = colours @ np.array([1, 2**8, 2**16])  # (H, W): 1 + place in the scene, 0 for none
        shown = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                shown[geom.segid + 1] = geom.objid
        return shown[numbers]

    def _render(self, camera: str, size: int) -> np.ndarray:
        """Colours uint8 (size, size, 3), row 0 at the top."""
        number = camera_id(self.model, camera)
        self._gl.make_current()
        if size > self._context.offWidth:
            mujoco.mjr_resizeOffscreen(size, size, self._context)
        visible = self._in_view(number) if self.shortcuts else np.ones(self.model.ngeom, bool)
        if background := self._background(number, size, visible):
            frame, depth = self._pass(number, size, visible & ~self._still)
            frame = np.where((depth < background.depth)[..., None], frame, background.frame)
        else:
            frame, _ = self._pass(number, size, visible)
        return np.ascontiguousarray(frame[::-1])  # OpenGL counts rows from the bottom

    def _pass(self, camera: int, size: int, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours and depths of the geoms in the mask (ngeom,), row 0 at the bottom."""
        cam = mujoco.MjvCamera()
        cam.type, cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self.model.geom_group[:] = np.where(visible, self._groups, HIDDEN_GROUP)
        mujoco.mjv_updateScene(
            self.model, self.data, self._option, self._perturb, cam, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(viewport, self._scene, self._context)
        frame, depth = np.empty((size, size, 3), np.uint8), np.empty((size, size), np.float32)
        mujoco.mjr_readPixels(frame, depth, viewport, self._context)
        return frame, depth

    def _background(self, camera: int, size: int, visible: np.ndarray) -> Background | None:
        """None where all has to be drawn together: a moving camera or light, anything to look through in view."""
        model, data = self.model, self.data
        moves = model.cam_mode[camera] or model.body_weldid[model.cam_bodyid[camera]]
        if not self.shortcuts or self.settings.msaa or moves or model.body_weldid[model.light_bodyid].any():
            return None
        if self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT]:
            return None
        if self._transparent is None:
            self._transparent = self._look_through(camera, size)
        if (visible & self._transparent).any():
            return None
        still = self._still
        parts = data.cam_xpos[camera], data.cam_xmat[camera], data.geom_xpos[still], data.geom_xmat[still]
        poses = np.concatenate([part.ravel() for part in (*parts, data.light_xpos, data.light_xdir)])
        kept = self._backgrounds.get((camera, size))
        if kept is None or not np.array_equal(kept.poses, poses):
            kept = Background(poses, *self._pass(camera, size, still))
            self._backgrounds[camera, size] = kept
        return kept

    def _look_through(self, camera: int, size: int) -> np.ndarray:
        """Mask (ngeom,): transparent, as MuJoCo sees it; all, where marks are that are no geoms."""
        mask = np.zeros(self.model.ngeom, bool)
        self._pass(camera, size, np.ones(self.model.ngeom, bool))
        for each in self._scene.geoms[: self._scene.ngeom]:
            if each.transparent and each.rgba[3] > 0:
                mask[each.objid if each.objtype == mujoco.mjtObj.mjOBJ_GEOM else slice(None)] = True
        return mask

    def _in_view(self, camera: int) -> np.ndarray:
        """Mask (ngeom,): the bounding box is not wholly beyond one side of the square image's pyramid."""
        if self.model.cam_sensorsize[camera].any():  # an off-centre pyramid: draw everything
            return np.ones(self.model.ngeom, bool)
        view = self.data.cam_xmat[camera].reshape(3, 3)
        turn = view.T @ self.data.geom_xmat.reshape(-1, 3, 3)  # (ngeom, 3, 3), geom to camera
        shift = (self.data.geom_xpos - self.data.cam_xpos[camera]) @ view
        corners = self._corners @ turn.transpose(0, 2, 1) + shift[:, None]  # (ngeom, 8, 3)
        reach = -corners[..., 2:] * np.tan(np.deg2rad(self.model.cam_fovy[camera]) / 2)  # the camera looks along -z
        beyond = np.concatenate([corners[..., :2] > reach, corners[..., :2] < -reach, reach < 0], axis=-1)
        return np.asarray(~beyond.all(1).any(1) | self._unbounded)

    def close(self) -> None:
        """Free the OpenGL context."""
        atexit.unregister(self.close)
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def camera_id(model: mujoco.MjModel, camera: str) -> int:
    """Index of a camera."""
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
    if camera not in names:
        raise PrismError(f"unknown camera {camera!r}; this task has {', '.join(map(repr, names))}")
    return names.index(camera)
