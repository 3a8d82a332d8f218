"""What trials leave: a journal of all of them, and of each policy a folder as of a run that was evaluated.

FOLDER/trials.json says what is tried, trials.jsonl has a line a trial, void ones too, and FOLDER/NAME/ has
results/last/trials-sSEED/ and videos/, so that `prism compare`, `prism report` and tables read trials as they read
simulated episodes. FOLDER/episodes/ holds every step of every trial (`prism_client.control.log`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prism_client.control.log import read_episode
from prism_policy.config import config_json
from prism_policy.config.ranges import Natural, NonNegative, Number, Seed
from prism_policy.config.settings import RunConfig
from prism_policy.config.typed_json import read_journal, read_json
from prism_policy.errors import PrismError
from prism_policy.evaluation.compare import TRIED
from prism_policy.evaluation.results import EpisodeSet, summarise_run
from prism_policy.reports.report import write_report
from prism_policy.robots.schedule import Trial
from prism_policy.run_folder import differences
from prism_policy.utils.files import atomic, disk_errors, write_lines, write_text
from prism_policy.utils.text import shown
from prism_policy.utils.video import mark_outcome, write_video

VIDEO_HEIGHT = 252
"""Of each camera's frames [px]."""


class TrialLine(TypedDict):
    """A line of trials.jsonl."""

    trial: Natural
    start: Natural
    policy: str
    void: tuple[str, ...]
    """Why it counts for nothing; empty where it counts."""
    success: bool
    stage: str
    judge: str
    """`operator`, or `simulator`."""
    note: str
    steps: Natural
    pauses: Natural
    ended: str
    episode: str
    """Its folder in FOLDER/episodes."""
    time: str
    seconds: NonNegative
    says: NotRequired[bool]
    """Of an operator's verdict on a simulation: whether the simulator saw a success."""


@dataclass(frozen=True)
class Policy:
    """A policy that is tried."""

    weights: str
    encoder: str
    kind: str
    run: str
    seed: int | None
    """Of its training; none where the server does not say."""


@dataclass(frozen=True)
class About:
    """trials.json: what is tried, and how."""

    task: str
    robot: dict[str, Any]
    """The robot file."""
    simulated: bool
    policies: dict[str, Policy]
    seed: Seed
    max_steps: Number
    judge: str
    stages: tuple[str, ...]
    placements: str
    """Of a robot: tells these placements from those of other trials; empty where a simulation places the objects."""
    instruction: str = ""
    objects: Natural = 0
    region: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrialFolder:
    """The folder of some trials."""

    path: Path
    about: About

    @classmethod
    def read(cls, path: Path) -> TrialFolder:
        """The trials in a folder; a PrismError says what is wrong with it."""
        return cls(path, read_json(path / "trials.json", About, "restore it", "expected a folder of `prism trials`"))

    @classmethod
    def open(cls, path: Path, about: About) -> TrialFolder:
        """Make the folder of these trials, or accept the one that holds them."""
        if (path / "trials.json").exists():
            there = cls.read(path)
            new = asdict(about) | {"placements": there.about.placements}
            for field, old, now in differences(
                json.loads(json.dumps(asdict(there.about))), json.loads(json.dumps(new))
            ):
                other = f"{field[:80]} was {shown(old)} and is now {shown(now)}"
                raise PrismError(f"{path} holds other trials: {other}; choose another --out")
            return there
        if path.exists() and any(one.name != ".lock" for one in path.iterdir()):
            raise PrismError(f"{path} exists and holds no trials; choose another --out")
        write_text(path / "trials.json", config_json.to_json(about))
        return cls(path, about)

    def lines(self) -> list[dict[str, Any]]:
        """All trials so far, void ones too, in the order in which they ended."""
        lines = read_journal(self.path / "trials.jsonl", TrialLine).sound("restore it; it holds what people saw")
        return [dict(line) for line in lines]

    def valid(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Those that count, by start and policy."""
        return {(line["start"], line["policy"]): line for line in self.lines() if not line["void"]}

    def done(self, trial: Trial) -> bool:
        """Whether a trial counts already."""
        return (trial.start, trial.policy) in self.valid()

    def episodes(self, policy: str) -> EpisodeSet:
        """The set of a policy's trials."""
        return EpisodeSet(self.path / policy, "last", "trials", self.about.seed)

    def outcomes(self, a: str, b: str) -> tuple[list[bool], list[bool]]:
        """Successes of two policies from the starts that both have met, in order."""
        valid = self.valid()
        both = sorted({start for start, policy in valid if policy == a} & {s for s, p in valid if p == b})
        return [valid[start, a]["success"] for start in both], [valid[start, b]["success"] for start in both]

    def prepare(self, policy: str, metadata: dict[str, Any]) -> None:
        """Make a policy's folder, with what its server says of it."""
        folder, about = self.path / policy, self.about
        said = {name: value for name, value in metadata.items() if name != "config"}
        write_text(folder / TRIED, json.dumps(said, indent=2) + "\n")
        task = {"name": about.task, "max_steps": about.max_steps}
        if (config := _config(metadata)) is not None:
            write_text(folder / "config.json", config_json.to_json(config))
            task = json.loads(json.dumps(asdict(config.task))) | task
        settings: dict[str, Any] = {"split": "trials", "seed": about.seed, "weights": about.policies[policy].weights}
        settings |= {"task": task, "robot": about.robot, "simulated": about.simulated, "judge": about.judge}
        settings |= {"starts": about.placements} if about.placements else {}
        write_text(self.episodes(policy).folder / "settings.json", json.dumps(settings, indent=2) + "\n")

    def keep(self, line: dict[str, Any], states: np.ndarray | None = None) -> None:
        """Write a trial down; on the disk on return."""
        if states is not None and not line["void"]:
            with atomic(self.episodes(line["policy"]).states(line["start"])) as temporary, open(temporary, "wb") as npy:
                np.save(npy, states, allow_pickle=False)
        journal = self.path / "trials.jsonl"
        with disk_errors(journal):
            # A last line that a kill cut off is removed: nothing may be appended to it.
            write_lines(journal, [*self.lines(), line])

    def export(self, fps: float) -> None:
        """Write the policies' folders from the journal: records, videos, summaries and reports."""
        by_policy: dict[str, list[dict[str, Any]]] = {}
        for (start, policy), line in sorted(self.valid().items()):
            by_policy.setdefault(policy, []).append({**line, "episode": start, "log": line["episode"]})
        for policy, records in by_policy.items():
            episodes = self.episodes(policy)
            write_lines(episodes.folder / "episodes.jsonl", records)
            for record in records:
                video = episodes.videos / f"episode_{record['episode']:03d}.mp4"
                if not video.exists():
                    _film(self.path / "episodes" / record["log"], record, video, round(fps) or 1)
            about = self.about.policies[policy]
            where = "SimRobot (simulated)" if self.about.simulated else str(self.about.robot["robot"])
            summary = summarise_run(self.path / policy, "trials", "last", (), fps)
            summary |= {"task": self.about.task, "policy": about.kind, "encoder": about.encoder}
            summary |= {"trials": f"on {where}, judged by the {self.about.judge}"}
            summary |= {"seed": about.seed} if about.seed is not None else {}
            write_text(self.path / policy / "results" / "summary.json", json.dumps(summary, indent=2) + "\n")
            if (self.path / policy / "config.json").exists():
                write_report(self.path / policy)


def policy_of(metadata: dict[str, Any]) -> Policy:
    """What a server's metadata say of its policy."""
    config = _config(metadata)
    weights, encoder, kind, run = (str(metadata.get(name, "")) for name in ("weights", "encoder", "policy", "run"))
    return Policy(weights, encoder, kind, run, None if config is None else config.seed)


def _config(metadata: dict[str, Any]) -> RunConfig | None:
    """The settings of the served run; None of another library's server."""
    if not isinstance(metadata.get("config"), dict):
        return None
    try:
        return config_json.from_dict(RunConfig, metadata["config"])
    except PrismError as error:
        raise PrismError(f"the server's settings are not of this version ({error}); install the same one") from error


def _film(folder: Path, record: dict[str, Any], path: Path, fps: int) -> None:
    """A video of a logged episode, all cameras beside each other."""
    steps = read_episode(folder).steps
    outcome = "success" if record["success"] else "failure"
    text = f"start {record['start']}: {outcome} after {record['steps']} steps, says the {record['judge']}"
    frames = [step["images"] for step in steps if "images" in step]
    if frames:
        write_video(path, mark_outcome(_beside(frames), text, record["success"], scale=1), fps)


def _beside(frames: Sequence[dict[str, NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
    for images in frames:
        yield beside(list(images.values()))


def beside(images: Sequence[NDArray[np.uint8]], height: int = VIDEO_HEIGHT) -> NDArray[np.uint8]:
    """Images (H, W, 3) of any sizes in a row, all of one height."""
    row = []
    for image in images:
        size = (max(round(image.shape[1] * height / image.shape[0]), 1), height)
        row.append(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)))
    return np.concatenate(row, axis=1)
