"""What a file of demonstrations holds, counted, and whether its demonstrations still work here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from prism_policy.config.presets import task_config
from prism_policy.config.settings import RenderConfig
from prism_policy.data.facts import DatasetFacts, read_facts
from prism_policy.data.source import Source, open_source
from prism_policy.demos.replay import Replay, contact_frames, recorded_frames, replay_demos, write_contact_sheet
from prism_policy.errors import PrismError
from prism_policy.tasks.adapted import is_adapted
from prism_policy.utils.hub import local_path
from prism_policy.utils.progress import Bar, console
from prism_policy.utils.terminal import shell
from prism_policy.utils.text import listed

REPLAYS = 3  # demonstrations that are replayed by default
MOST_BAD = 10  # bad demonstrations that are printed


def print_demos(path: Path, replay: int | None = None, out: Path | None = None, as_json: bool = False) -> None:
    """Print what a file holds, replay some of its demonstrations, and write a contact sheet.

    Args:
        replay: how many demos; none is `REPLAYS` where states, task and controller allow it and the simulator is there.
        out: of the contact sheet; by default the file's name with -contact.png, in the current folder.
        as_json: print JSON and nothing else.
    """
    if replay is not None and replay < 0:
        raise PrismError(f"replay: expected 0 or more demonstrations, got {replay}")
    path = local_path(path, "dataset")
    if path.is_dir():
        _print_source(open_source(path), out, as_json)
        return
    facts = read_facts(path)
    if not as_json:
        _print_facts(path, facts)
    names = [name for name in facts.names if name not in facts.bad][: REPLAYS if replay is None else replay]
    trouble = _replay_trouble(facts)
    replays: list[Replay] = []
    if names and not trouble:
        try:
            task = facts.env.task_config(str(path))
            with nullcontext() if as_json else Bar("Replay", len(names)) as bar:
                replays = replay_demos(path, names, task, bar.count if bar else None)
        except PrismError as error:
            trouble = str(error)
    if trouble and replay:
        raise PrismError(trouble if str(path) in trouble else f"{path}: {trouble}")
    sheet = None
    if rows := _rows(path, names, facts, replays):
        sheet = out or Path(f"{path.stem}-contact.png")
        try:
            write_contact_sheet(sheet, rows)
        except (PrismError, OSError) as error:
            if out:
                raise
            if not as_json:
                console.print(f"No contact sheet: {error}; --out chooses another place")
            sheet = None
    results = [{k: v for k, v in vars(one).items() if k != "frames"} for one in replays]
    if as_json:
        report = {
            "file": str(path),
            **asdict(facts),
            "images": facts.images,
            "low_dim": facts.low_dim,
            "replays": results,
            "replay_trouble": trouble,
        }
        console.data(json.dumps({**report, "contact_sheet": sheet and str(sheet)}, indent=2))
        return
    if replays:
        console.print(_replay_table(replays))
    elif trouble:
        console.print(f"No replay: {trouble}.")
    if sheet:
        console.print(f"Frames: {sheet} (a demonstration a row, time to the right)")
    console.print(f"Next:   {_next_step(path, facts)}")


def _print_source(source: Source, out: Path | None, as_json: bool) -> None:
    """Print what a folder holds: nothing here replays it, as no simulator recorded it."""
    schema, masks = source.schema, {mask: len(names) for mask, names in source.masks.items()}
    if as_json:
        about = {"path": str(source.path), "schema": asdict(schema), "names": source.names, "masks": masks}
        console.data(json.dumps({**about, "findings": source.findings}, indent=2))
        return
    rate = "at an unknown rate" if schema.fps is None else f"at {schema.fps:g} Hz"
    console.print(f"{source.path.name}: {len(source.names)} demonstrations {rate}", "")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row(
        "images", ", ".join(f"{camera} {width}x{height}" for camera, (height, width) in schema.cameras.items())
    )
    for title, parts in (("state", schema.state), ("action", schema.action)):
        for part in parts:
            table.add_row(title, f"{part.name} ({part.size}), {part.kind}: {listed(part.number_names, 8)}")
    table.add_row("masks", ", ".join(f"{mask} {count}" for mask, count in masks.items()) or "none")
    console.print(table)
    for finding in source.findings:
        console.print(f"note: {finding}", style="yellow")
    first = next(source.episodes(source.names[:1], schema))
    sheet = out or Path(f"{source.path.name}-contact.png")
    text = f"{first.name}: {len(first)} steps"
    write_contact_sheet(sheet, [(text, None, contact_frames(list(first.images.values())))])
    console.print(f"Frames: {sheet} (a demonstration a row, time to the right)")
    console.print(f"Next:   {shell('prism', 'train', '--dataset', source.path, '--data.resize', '84')}")


def _rows(
    path: Path, names: Sequence[str], facts: DatasetFacts, replays: Sequence[Replay]
) -> list[tuple[str, bool | None, np.ndarray]]:
    """The contact sheet's rows: frames from the file, which a policy would see, else those drawn by the replay."""
    rows, replayed = list[tuple[str, bool | None, np.ndarray]](), {one.demo: one for one in replays}
    for name in names:
        text, success = name, None
        if one := replayed.get(name):
            outcome, success = "succeeds" if one.actions_succeed else "fails", one.actions_succeed
            text = f"{name}: {one.steps} steps, replay {outcome}, hand within {one.deviation_mm:.1f} mm"
        if facts.images:
            rows.append((text, success, recorded_frames(path, name)))
        elif one:
            rows.append((text, success, one.frames))
    return rows


def _replay_trouble(facts: DatasetFacts) -> str:
    """Why nothing can be replayed; "" where it can."""
    if trouble := facts.env.scene_trouble or facts.env.control_trouble:
        return trouble
    if not facts.states:
        return "the file holds no simulator states to start from"
    if importlib.util.find_spec("robosuite") is None:
        return "the simulator is not installed; run `pip install prism-policy[sim]`"
    return ""


def _print_facts(path: Path, facts: DatasetFacts) -> None:
    env = facts.env
    spread = f"median {facts.steps_median:g}, {facts.steps_min} to {facts.steps_max}"
    console.print(
        f"{path.name}: {facts.demos} demonstrations of {env.env_name or 'an unnamed task'}, "
        f"{facts.steps} steps ({spread})",
        "",
    )
    layout = f", layout of robomimic {env.layout}" if env.layout else ""
    frame = "the robot's base" if env.reference_frame == "base" else "the world"
    control = f"{env.controller}, {env.action_mode} actions in the frame of {frame}"
    images = ", ".join(f"{camera} {width}x{height}" for camera, (height, width) in facts.images.items())
    settings = ", ".join(f"{key} {value}" for key, value in (facts.render or {}).items())
    who = {
        "recorded by": f"robosuite {env.robosuite or 'of unknown version'}{layout}",
        "robot": ", ".join(env.robots) or "unknown robot",
        "control": control if env.controller else "not recorded",
    }
    if is_adapted(env.env_name):
        rate = f"{env.control_hz:g} steps a second" if env.control_hz else "unknown rate"
        who = {"recorded by": f"an environment of gymnasium, {rate}"}
    if env.on_robot:
        who = {"recorded by": f"a robot, {env.control_hz or 0:g} steps a second"}
    rows = {
        **who,
        "images": images or "none",
        "rendering": (settings or "settings not recorded") if images else "",
        "low-dim": ", ".join(f"{key} ({width})" for key, width in facts.low_dim.items()) or "none",
        "next_obs": "yes" if facts.next_obs else "no",
        "states": f"{facts.states} numbers" if facts.states else "none",
        "success": "" if facts.successes is None else f"reward reaches 1 in {facts.successes} of {facts.demos}",
        "masks": ", ".join(f"{mask} {count}" for mask, count in facts.masks.items()) or "none",
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for title, text in rows.items():
        if text:
            table.add_row(title, text)
    console.print(table)
    for finding in facts.findings:
        console.print(f"note: {finding}", style="yellow")
    shown = list(facts.bad.items())[:MOST_BAD]
    for name, reason in shown:
        console.print(f"bad {name}: {reason}", style="red")
    if len(facts.bad) > len(shown):
        console.print(f"and {len(facts.bad) - len(shown)} more bad demonstrations (--json names all)", style="red")
    table = Table(box=box.SIMPLE, padding=0, pad_edge=False)
    for title in ("action", "min", "max", "mean", "at limit"):
        table.add_column(title, justify="left" if title == "action" else "right", min_width=8)
    for row in facts.actions:
        share = "" if row.at_limit is None else f"{row.at_limit:.1%}"
        table.add_row(row.name, f"{row.min:.3f}", f"{row.max:.3f}", f"{row.mean:.3f}", share)
    console.print(table)


def _replay_table(replays: Sequence[Replay]) -> Table:
    table = Table(box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column("replayed here", no_wrap=True)
    for title in ("steps", "from actions", "from states", "hand off by at most"):
        table.add_column(title, justify="right")
    for r in replays:
        outcomes = ("success" if succeeds else "failure" for succeeds in (r.actions_succeed, r.states_succeed))
        table.add_row(r.demo, str(r.steps), *outcomes, f"{r.deviation_mm:.1f} mm")
    return table


def _next_step(path: Path, facts: DatasetFacts) -> str:
    if facts.images and facts.env.task:
        words = ("prism", "train", "--task", facts.env.task, "--dataset", path)
        return shell(*words, *_flags(facts).split())
    if facts.images and is_adapted(facts.env.env_name):
        return shell("prism", "train", "--task", facts.env.env_name, "--dataset", path)
    if facts.images:
        return shell("prism", "train", "--dataset", path)
    if facts.states and (facts.env.env_kwargs or not facts.env.scene_trouble):
        return shell("prism", "render", path)
    return "take a file with images or with simulator states of one of this library's tasks (docs/data.md)"


def _flags(facts: DatasetFacts) -> str:
    """What the file's images and actions ask for beyond the defaults of its task."""
    assert facts.env.task
    task, flags = task_config(facts.env.task), ""
    if set(facts.images) != set(task.cameras) and not set(task.cameras) <= set(facts.images):
        flags += f" --task.cameras {' '.join(facts.images)}"
    sizes = {size for sizes in facts.images.values() for size in sizes}
    if len(sizes) == 1 and sizes != {task.render.resolution}:
        flags += f" --task.render.resolution {sizes.pop()}"
    for setting, value in (facts.render or {}).items():
        if setting != "resolution" and getattr(RenderConfig(), setting, value) != value:
            flags += f" --task.render.{setting.replace('_', '-')} {value}"
    return flags + " --task.action-mode absolute" * (facts.env.action_mode == "absolute")
