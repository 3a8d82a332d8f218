"""The scripted experts: they do their tasks under disturbance, recover from losses, and differ like people do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from prism_policy.config.settings import DemoConfig, TaskConfig

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_policy.envs.episode import episode_rng
from prism_policy.envs.experts import Disturbance, Expert, demonstrate, down, expert_type, nearest_quarter, tool_hang
from prism_policy.envs.experts import square as square_module
from prism_policy.envs.experts.base import rotation_vector
from prism_policy.envs.experts.route import Route, absolute, relative
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks import SPECS
from prism_policy.tasks.spec import ROBOSUITE

DEMOS = DemoConfig(seed=11)
SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("square", "tool_hang")]
SLOW_EPISODES = [pytest.param(t, n, marks=pytest.mark.slow) for t, n in (("can", 5), ("square", 5), ("tool_hang", 3))]
EXPERTS = {name: expert_type(spec) for name, spec in SPECS.items() if spec.simulator == ROBOSUITE}
Interfere = Callable[[Expert], np.ndarray | None]


@pytest.fixture(scope="module")
def envs() -> Iterator[Callable[[str], RobosuiteEnv]]:
    made: dict[str, RobosuiteEnv] = {}

    def env(task: str) -> RobosuiteEnv:
        if task not in made:
            made[task] = RobosuiteEnv(TaskConfig(task), render_images=False)
        return made[task]

    yield env
    for each in made.values():
        each.close()


def play(env: RobosuiteEnv, episode: int, interfere: Interfere = lambda expert: None) -> Expert:
    """An undisturbed episode, but for the actions that `interfere` returns instead of the expert's."""
    env.reset(seed=DEMOS.seed, options={"split": "collect", "episode": episode})
    expert = EXPERTS[env.task.name](env, episode_rng("collect", DEMOS.seed, episode, rng_stream=2))
    for wanted in expert.script():
        action = interfere(expert)
        env.advance(wanted if action is None else action)
        if expert.done() or len(env.states) > expert.max_steps:
            return expert
    raise AssertionError("a script ended by itself")


def once(stage: str, action: list[float], steps: int) -> Interfere:
    """Do `action` for some steps when the expert first reaches the stage's second step."""
    counts = {"in stage": 0, "done": 0}

    def interfere(expert: Expert) -> np.ndarray | None:
        counts["in stage"] += expert.stage == stage
        if counts["in stage"] < 2 or counts["done"] == steps:
            return None
        counts["done"] += 1
        return np.array(action)

    return interfere


def test_every_task_has_an_expert() -> None:
    assert len(EXPERTS) >= 5
    for expert in EXPERTS.values():
        assert expert.tolerance.keys() <= set(expert.stages)


@pytest.mark.parametrize(
    ("task", "episodes"), [("lift", 6), ("lift_2cm", 3), ("stack", 5), ("key_pick", 2), ("can", 2), *SLOW_EPISODES]
)
def test_the_expert_does_its_task_under_disturbance(
    task: str, episodes: int, envs: Callable[[str], RobosuiteEnv]
) -> None:
    env = envs(task)
    for episode in range(episodes):
        demo = demonstrate(env, DEMOS, episode)
        assert demo.success
        assert demo.disturbed.any()
        assert demo.rewards[-5:].all()
        assert np.abs(demo.actions).max() <= 1
        assert len({len(a) for a in (demo.states, demo.actions, demo.disturbed, demo.rewards, demo.stages)}) == 1
        assert set(demo.stages) == set(range(len(EXPERTS[task].stages)))  # none of the names is idle


@pytest.mark.parametrize("task", ["lift", "stack", "key_pick", "can", *SLOW])
def test_replaying_the_executed_actions_succeeds_again_in_the_same_states(
    task: str, envs: Callable[[str], RobosuiteEnv]
) -> None:
    env = envs(task)
    demo = demonstrate(env, DEMOS, 1)
    env.reset(seed=99, options={"state": demo.states[0]})
    for action in demo.actions:
        env.advance(action)
    assert env.success
    np.testing.assert_array_equal(np.stack(env.states[:-1]), demo.states)


def thing(env: RobosuiteEnv) -> object:
    """What is picked up first."""
    sim_env = env.sim_env
    return {
        "lift": lambda: sim_env.cube,
        "can": lambda: sim_env.objects[sim_env.object_id],
        "square": lambda: sim_env.nuts[sim_env.nut_id],
    }[env.task.name]()


@pytest.mark.parametrize(("task", "stage"), [("lift", "lift"), ("can", "carry"), ("square", "carry")])
def test_what_is_dropped_is_taken_again(task: str, stage: str, envs: Callable[[str], RobosuiteEnv]) -> None:
    env, held = envs(task), []
    drop = once(stage, [0, 0, 0, 0, 0, 0, -1], 12)

    def interfere(expert: Expert) -> np.ndarray | None:
        held.append(expert.opening < 0.06 and expert.grasps(thing(env)))
        return drop(expert)

    play(env, 0, interfere)
    assert env.success
    taken = np.flatnonzero(np.diff(held, prepend=False))
    assert len(taken) >= 3  # in the hand, out of it, and in it again
    assert taken[2] - taken[1] > 12


@pytest.mark.parametrize(
    ("task", "stage"),
    [
        ("lift", "descend"),
        ("can", "carry"),
        ("square", "align"),
        pytest.param("tool_hang", "carry frame", marks=pytest.mark.slow),
        pytest.param("tool_hang", "line up", marks=pytest.mark.slow),
    ],
)
def test_a_push_only_delays(task: str, stage: str, envs: Callable[[str], RobosuiteEnv]) -> None:
    env = envs(task)
    play(env, 2)
    undisturbed = np.stack(env.states)
    push = once(stage, [-0.6, 0.6, 0.3, 0, 0, 0, -1 if stage == "descend" else 1], 4)
    play(env, 2, push)
    assert env.success
    assert len(env.states) < len(undisturbed) + 100
    n = min(len(env.states), len(undisturbed))
    assert np.abs(np.stack(env.states)[:n] - undisturbed[:n]).max() > 0.05  # it was pushed


@pytest.mark.slow
def test_a_mounted_frame_is_not_mounted_again(envs: Callable[[str], RobosuiteEnv]) -> None:
    env, stages = envs("tool_hang"), []
    drop = once("carry tool", [0, 0, 0, 0, 0, 0, -1], 12)

    def interfere(expert: Expert) -> np.ndarray | None:
        stages.append(expert.stage)
        return drop(expert)

    play(env, 0, interfere)
    after = stages[stages.index("carry tool") :]
    assert {"reach tool", "grasp tool"} & set(after)
    assert not {"reach frame", "carry frame"} & set(after)


def test_what_is_held_elsewhere_than_at_its_grip_is_let_go_of(
    envs: Callable[[str], RobosuiteEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Led by its grip it would be lost at once, and the script begin again without end and without an action."""
    env = envs("tool_hang")
    env.reset(seed=0)
    expert = EXPERTS["tool_hang"](env, np.random.default_rng(0))
    monkeypatch.setattr(expert, "grasps", lambda thing: True)
    script = expert.script()
    assert [next(script)[6] for _ in range(50)] == [-1.0] * 50


def test_a_demonstration_ends_with_the_object_let_go(envs: Callable[[str], RobosuiteEnv]) -> None:
    for task in ("can", "square"):
        env = envs(task)
        assert play(env, 3).opening > 0.06
        assert not env.sim_env.check_contact(env.sim_env.robots[0].gripper["right"], thing(env))


@pytest.mark.slow
def test_success_while_the_nut_is_held_is_not_the_end(envs: Callable[[str], RobosuiteEnv]) -> None:
    env, held = envs("square"), []

    def remember(expert: Expert) -> None:
        held.append(env.success and expert.grasps(thing(env)))

    for episode in range(4):
        play(env, episode, remember)
        assert not held[-1]
    assert any(held)  # robosuite's rule alone would have ended there


def test_a_demonstration_longer_than_the_task_allows_is_a_failure(
    envs: Callable[[str], RobosuiteEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EXPERTS["can"], "max_steps", 30)
    demo = demonstrate(envs("can"), DEMOS, 0)
    assert not demo.success
    assert len(demo.actions) == 30


@pytest.mark.parametrize("task", ["lift", "can", pytest.param("square", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_speed_and_grasp_differ_between_episodes(task: str, envs: Callable[[str], RobosuiteEnv]) -> None:
    env, body = envs(task), {"lift": "cube_main", "can": "Can_main", "square": "SquareNut_main"}[task]
    speeds, grasps = [], []
    for episode in range(5):
        at_grasp: list[np.ndarray] = []

        def remember(expert: Expert, at_grasp: list[np.ndarray] = at_grasp) -> None:
            if expert.stage in ("lift", "carry") and not at_grasp:
                hand, rotation = expert.hand()
                at_grasp.append(rotation.T @ (expert.body(body)[0] - hand))

        speeds.append(play(env, episode, remember).speed)
        grasps.append(at_grasp[0])
    assert np.ptp(speeds) > 0.05
    assert np.linalg.norm(np.std(grasps, axis=0)) > 0.001


def test_no_noise_means_no_disturbance() -> None:
    action = np.linspace(-1, 1, 7)
    disturbance = Disturbance(0.0, np.random.default_rng(0))
    for _ in range(100):
        executed, pushed = disturbance(action)
        assert not pushed
        np.testing.assert_array_equal(executed, action)


def test_a_delicate_stage_takes_its_share_of_a_push_and_keeps_its_grip() -> None:
    action = np.array([0, 0, 0, 0, 0, 0, 1.0])
    whole, part, none = (Disturbance(0.5, np.random.default_rng(0)) for _ in range(3))
    flipped = 0
    for _ in range(500):
        (full, pushed), (share, _) = whole(action), part(action, 0.1)
        assert np.abs(share[:6]).max() <= 0.1 * 0.5 * 2 * 5  # no direction is over five times its normal length
        np.testing.assert_allclose(np.clip(share[:6] * 10, -1, 1), full[:6], atol=1e-12)
        assert share[6] == 1
        assert not none(action, 0.0)[1]
        flipped += pushed and full[6] == -1
    assert flipped


def test_a_route_leads_from_pose_to_pose_at_its_speed() -> None:
    start, end = (np.zeros(3), np.eye(3)), (np.array([0.3, 0.0, 0.4]), down(0.0) @ down(0.5))
    base = np.array([1.0, 2.0, 3.0]), down(0.7)
    route = Route([start, end], speed=0.25, turn=10.0)
    assert route.duration == pytest.approx(0.5 / 0.25)
    for time, pose in ((0.0, start), (route.duration, end)):
        position, rotation, velocity, _ = route.at(time, base)
        expected = absolute(pose, base)
        np.testing.assert_allclose(position, expected[0], atol=1e-12)
        np.testing.assert_allclose(rotation, expected[1], atol=1e-12)
        assert np.linalg.norm(velocity) == pytest.approx(0.25)
        np.testing.assert_allclose(relative((position, rotation), base)[0], pose[0], atol=1e-12)
    step = 1e-4
    before, after = route.at(1.0, base), route.at(1.0 + step, base)
    np.testing.assert_allclose((after[0] - before[0]) / step, before[2], atol=1e-6)
    np.testing.assert_allclose(rotation_vector(after[1] @ before[1].T) / step, before[3], atol=1e-6)


def test_the_nut_and_the_peg_are_where_the_script_has_them(envs: Callable[[str], RobosuiteEnv]) -> None:
    env = envs("square")
    model = env.sim_env.sim.model
    handle = model.geom_name2id("SquareNut_g4")
    np.testing.assert_allclose(model.geom_pos[handle], [square_module.HANDLE, 0, 0], atol=1e-6)
    peg = model.body_name2id(square_module.PEG)
    (size,) = {tuple(model.geom_size[g]) for g in range(model.ngeom) if model.geom_bodyid[g] == peg}
    assert size[2] == pytest.approx(square_module.PEG_HEIGHT)


def test_the_frame_the_stand_and_the_tool_are_as_the_script_has_them(envs: Callable[[str], RobosuiteEnv]) -> None:
    env = envs("tool_hang")
    sim = env.sim_env.sim
    env.reset(seed=0)
    expert = EXPERTS["tool_hang"](env, np.random.default_rng(0))
    assert isinstance(expert, tool_hang.ToolHang)
    for point, site, within in (
        (tool_hang.FRAME_TIP, "frame_tip_site", 1e-4),
        (tool_hang.TOOL_RING, "tool_hole1_center", 8e-4),
    ):
        np.testing.assert_allclose(expert.pose(point)[0], sim.data.get_site_xpos(site), atol=within)
    np.testing.assert_allclose(
        expert.pose(tool_hang.FRAME_GRIP)[0], sim.data.get_geom_xpos("frame_grip_frame"), atol=1e-4
    )
    walls = [sim.model.geom_name2id(f"stand_wall{i}") for i in range(4)]
    top = sim.data.geom_xpos[walls].mean(axis=0) + sim.model.geom_size[walls[0]] * (0, 0, 1)
    np.testing.assert_allclose(expert.pose(tool_hang.HOLE)[0], top, atol=0.0015)
    controller = env.sim_env.robots[0].part_controllers["right"]
    np.testing.assert_allclose(controller.kd / controller.kp, tool_hang.LAG, rtol=0.01)


@pytest.mark.parametrize(("ring", "free"), [(tool_hang.TOOL_RING.offset[0], True), (-0.090, False)])
def test_the_way_round_the_hook_is_free(ring: float, free: bool, envs: Callable[[str], RobosuiteEnv]) -> None:
    """Put along the route by hand, the tool stays a millimetre off the frame; led by another point it does not."""
    import mujoco

    env = envs("tool_hang")
    env.reset(seed=0)
    model, data = env.model, env.sim_env.sim.data._data
    roots = {name: int(model.body_rootid[model.body(name).id]) for name in ("frame_root", "tool_root")}
    frame = np.array([0.0, 0.0, 1.5]), tool_hang.UPRIGHT  # in the air, away from everything
    route = Route([tool_hang.ABOVE_HOOK, *tool_hang.ROUND_HOOK], speed=0.03, turn=0.5)
    margins, model.geom_margin[:] = model.geom_margin.copy(), 0.004
    room = []
    for time in np.linspace(0, route.duration, 80):
        position, rotation, *_ = route.at(time, frame)
        for name, pose in (("frame_root", frame), ("tool_root", (position - ring * rotation[:, 0], rotation))):
            at = model.jnt_qposadr[model.body_jntadr[roots[name]]]
            data.qpos[at : at + 3] = pose[0]
            mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], pose[1].flatten())
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        pairs = [(c.dist, {int(model.body_rootid[model.geom_bodyid[g]]) for g in c.geom}) for c in data.contact]
        room.append(min((distance for distance, pair in pairs if pair == set(roots.values())), default=0.004))
    model.geom_margin[:] = margins
    # Two of the eighty are far inside and their neighbours are not: MuJoCo's collision of boxes edge on edge.
    assert (np.quantile(room, 0.05) > 0.001) == free
    assert min(room[:5]) == 0.004


def test_a_hand_that_points_down_is_a_rotation() -> None:
    for yaw in np.linspace(-3, 3, 7):
        np.testing.assert_allclose(down(yaw) @ down(yaw).T, np.eye(3), atol=1e-12)
        assert np.linalg.det(down(yaw)) == pytest.approx(1)
        turned = nearest_quarter(down(yaw), reference=0.3)
        assert abs(turned - 0.3) <= np.pi / 4 + 1e-9
        assert np.sin(2 * (turned - yaw)) == pytest.approx(0, abs=1e-9)  # a multiple of a quarter turn
