"""`prism trials`: policies on a robot, blinded, from the same placements, until what differs is known."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prism_client.client import PolicyClient
from prism_client.control.loop import LoopOptions, Outcome
from prism_client.control.rollout import RolloutOptions, check_rate, connected, next_folder, run_episode
from prism_client.control.words import about_outcome
from prism_client.robots.robot import Robot
from prism_client.robots.robot_file import RobotFile, make_robot
from prism_policy.config.options import TrialOptions
from prism_policy.errors import PrismError
from prism_policy.robots.match import Matcher, snapshot
from prism_policy.robots.operator import ENTER, QUIT, Keys, Verdict, judge
from prism_policy.robots.policies import addresses, parse_policies
from prism_policy.robots.results import About, TrialFolder, policy_of
from prism_policy.robots.schedule import Trial, marks, schedule
from prism_policy.robots.verdict import evidence_so_far, finished, write_summary
from prism_policy.tasks import task_spec
from prism_policy.utils.files import disk_errors, folder_lock
from prism_policy.utils.progress import console
from prism_policy.utils.text import quoted

MOST_VOID = 3
"""Void trials in a row after which something has to be repaired first."""


def run_trials(
    file: RobotFile, options: TrialOptions, out: Path, keys: Keys | None = None, api_key: str | None = None
) -> TrialFolder:
    """Execute the trials that are missing, and write what all of them say.

    Raises:
        PrismError: robot and policies do not fit, the folder holds other trials, or three in a row were void.
    """
    policies = parse_policies(options.policies)
    robot = make_robot(file)
    simulated = hasattr(robot, "progress")
    if options.judge == "simulator" and not simulated:
        raise PrismError("--judge simulator: only a simulated robot (robot = 'sim') knows; leave it out")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out, "running trials in"), addresses(policies) as urls:
        session = _Session(robot, file, options, out, urls, simulated, api_key)
        try:
            session.run(keys or Keys())
        finally:
            with suppress(Exception):
                robot.close()
        folder = session.folder
        if folder.valid():
            folder.export(robot.schema.fps or 20.0)
            write_summary(folder, options.starts)
    return folder


class _Session:
    """Trials from one call of the command."""

    def __init__(
        self,
        robot: Robot,
        file: RobotFile,
        options: TrialOptions,
        out: Path,
        urls: Mapping[str, str],
        simulated: bool,
        api_key: str | None,
    ) -> None:
        self.robot, self.file, self.options, self.urls, self.simulated = robot, file, options, urls, simulated
        self.logs, self.api_key = out / "episodes", api_key
        metadata = {name: self._metadata(url) for name, url in urls.items()}
        task = str(next(iter(metadata.values())).get("task", ""))
        for said in metadata.values():
            if said.get("task", "") != task:
                raise PrismError(f"expected policies of one task, got {quoted(task)} and {quoted(said.get('task'))}")
        stages = options.stages or _stages(task)
        about = About(
            task, file.as_json(), simulated, {name: policy_of(said) for name, said in metadata.items()}, options.seed,
            options.max_steps, options.judge, stages, "" if simulated else secrets.token_hex(8), options.instruction,
            options.objects * (not simulated), () if simulated else options.region,
        )  # fmt: skip
        self.folder = TrialFolder.open(out, about)
        for name, said in metadata.items():
            self.folder.prepare(name, said)

    def _client(self, url: str) -> PolicyClient:
        return connected(self._rollout(url))

    def _rollout(self, url: str, start: int = 0) -> RolloutOptions:
        options = self.options
        loop = LoopOptions(options.max_steps, reconnect_s=options.reconnect_s)
        seed = 10_000 * options.seed + start  # the same noise for each policy, another from each start
        return RolloutOptions(
            url, self.logs, instruction=options.instruction or None, seed=seed, api_key=self.api_key,
            ca=options.ca or None, answer_s=options.answer_s, loop=loop,
        )  # fmt: skip

    def _metadata(self, url: str) -> dict[str, Any]:
        with self._client(url) as client:
            check_rate(self.robot, client.metadata.get("control_hz"))
            return dict(client.metadata)

    def run(self, keys: Keys) -> None:
        """Trial after trial, until all are done, the operator leaves, or it is decided."""
        plan = schedule(list(self.urls), self.options.starts, self.options.seed)
        missing = [trial for trial in plan if not self.folder.done(trial)]
        if finished(self.folder, self.options.starts, self.options.until):
            console.print(f"Nothing is left to do: {len(plan) - len(missing)} of {len(plan)} trials are done")
            return
        about = f"{len(plan)} trials, {len(plan) - len(missing)} done; which policy acts is not said until the end"
        console.print(about)
        self.robot.connect()
        with keys:
            for trial in missing:
                if not self._until_valid(trial, len(plan), keys):
                    return
                if self._start_is_done(trial.start):
                    line, decided = evidence_so_far(self.folder, self.options.starts)
                    console.print(line)
                    if decided and self.options.until == "decided":
                        return

    def _start_is_done(self, start: int) -> bool:
        valid = self.folder.valid()
        return all((start, policy) in valid for policy in self.urls)

    def _until_valid(self, trial: Trial, total: int, keys: Keys) -> bool:
        """Execute a trial, again where it was void; False where the operator leaves."""
        for _ in range(MOST_VOID):
            if not self._place(trial, total, keys):
                return False
            line, interrupted = self._execute(trial, keys)
            if not line["void"]:
                return True
            if interrupted:
                return False
            console.print(f"Trial {trial.number + 1} is void ({line['void'][0]}); once more")
        raise PrismError(
            f"{MOST_VOID} trials in a row were void, the last one because: {line['void'][0]}; repair that and run the "
            "same command again, it goes on here"
        )

    def _place(self, trial: Trial, total: int, keys: Keys) -> bool:
        """Have the objects put where this start has them; False where the operator leaves."""
        head = f"Trial {trial.number + 1} of {total}, start {trial.start + 1}"
        picture = self.folder.path / "starts" / f"start_{trial.start:03d}.png"
        if self.simulated:
            self.robot.begin("evaluate", self.options.seed, trial.start)  # type: ignore[attr-defined]
            if not picture.exists():
                snapshot(self.robot.observe(), picture)
            if self.options.judge == "simulator":
                return True
            console.print(f"{head}: {picture}")
            if keys.choose("", {ENTER: "starts", QUIT: "leaves"}) == QUIT:
                return False
            self.robot.begin("evaluate", self.options.seed, trial.start)  # type: ignore[attr-defined]
            return True  # begun anew: meanwhile it held
        self.robot.home()
        places = marks(self.options.objects, self.options.region, self.options.seed, trial.start)
        matcher = Matcher(self.folder.path, picture if picture.exists() else None, places)
        page = self.folder.path / "match.html"
        console.print(f"{head}: put the objects as {page} shows (open it in a browser); Enter starts, q leaves")
        difference = None
        while (key := keys.read(0.3)) not in (ENTER, QUIT):
            with suppress(PrismError):  # a camera that comes back
                difference = matcher.update(self.robot.observe())
        if key == QUIT:
            return False
        if difference is not None:
            console.print(f"The cameras differ from the wanted picture by {difference:.1f} of 255 grey levels")
        if not picture.exists():
            snapshot(self.robot.observe(), picture)
        return True

    def _execute(self, trial: Trial, keys: Keys) -> tuple[dict[str, Any], bool]:
        """One episode and what became of it, written down; and whether somebody wants to leave."""
        url, began = self.urls[trial.policy], time.monotonic()
        log = next_folder(self.logs)
        with self._client(url) as client:
            if client.metadata.get("weights") != self.folder.about.policies[trial.policy].weights:
                raise PrismError(f"the server at {url} has another policy than before; choose another --out")
            with keys.paused():  # the loop reads its own stop keys
                outcome = run_episode(self.robot, self.file, client, self._rollout(url, trial.start), 0, log)
        console.print(f"Trial {trial.number + 1}: {about_outcome(replace(outcome, ended='ended', reason=''))}")
        verdict, states = self._judge(outcome, keys)
        interrupted = verdict.left or (outcome.ended == "stopped" and bool(outcome.void))
        line: dict[str, Any] = {"trial": trial.number, "start": trial.start, "policy": trial.policy}
        line |= {"void": [*outcome.void, *filter(None, (verdict.void,))], "success": verdict.success}
        line |= {"stage": verdict.stage, "judge": self.options.judge, "note": verdict.note}
        line |= {"steps": outcome.steps, "pauses": outcome.pauses, "ended": outcome.ended, "episode": log.name}
        line |= {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        line |= {"seconds": round(time.monotonic() - began, 2)}
        if self.simulated and self.options.judge == "operator":
            line["says"] = outcome.ended == "success"
        self.folder.keep(line, states)
        return line, interrupted

    def _judge(self, outcome: Outcome, keys: Keys) -> tuple[Verdict, Any]:
        """What becomes of an episode, and its simulator states where there are any."""
        stage, states = self.robot.progress() if self.simulated else ("", None)  # type: ignore[attr-defined]
        if outcome.void:
            return Verdict(), states
        if self.options.judge == "simulator":
            return Verdict(outcome.ended == "success", stage), states
        return judge(keys, self.folder.about.stages), states


def _stages(task: str) -> tuple[str, ...]:
    try:
        return task_spec(task).stages or ("success",)
    except PrismError:
        return ("success",)
