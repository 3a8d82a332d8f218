"""The command `prism`. Torch and the simulator are imported only by the command that needs them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy import presets
from prism_policy.config import PolicyKind, TaskName
from prism_policy.errors import PrismError

EncoderName = Literal[
    "avgpool", "maxpool", "nopool", "sspool", "ms_avgpool", "ms_maxpool", "ms_nopool", "ms_sspool", "prism"
]


@dataclass(frozen=True)
class Quickstart:
    """Demonstrations, policy, measured success and a report, from nothing, in about ten minutes on two CPU cores.

    A scripted expert collects demonstrations in simulation (kept in ~/.cache/prism-policy, or $PRISM_CACHE), a small
    policy learns from their images, and 20 unseen episodes measure it. Stop it whenever you like: the same command goes
    on where it was.
    """

    task: TaskName = "lift"
    """What the robot has to do."""
    policy: PolicyKind = "flow_matching"
    """Generative model of the action chunk."""
    encoder: EncoderName = "prism"
    """Visual encoder: the paper's PRISM, its baseline sspool, or one of the ablations."""
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    """Cameras the policy sees."""
    seed: int = 0
    """Seed of demonstrations, training and evaluation (three separate random streams)."""
    out: Path | None = None
    """Run folder; by default runs/quickstart-TASK-POLICY-ENCODER-sSEED."""
    smoke: bool = False
    """The same path at the smallest size, in about a minute; says nothing about success."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.quickstart import print_summary, quickstart

        config = presets.nano(self.task, self.policy, self.encoder, self.seed)
        config = replace(config, task=replace(config.task, cameras=self.cameras))
        if self.smoke:
            config = presets.smoke(config)
        name = f"{'smoke' if self.smoke else 'quickstart'}-{self.task}-{self.policy}-{self.encoder}-s{self.seed}"
        folder = self.out or Path("runs") / name
        labels = {"policy": self.policy, "encoder": self.encoder, "preset": "smoke" if self.smoke else "nano"}
        print_summary(folder, quickstart(folder, config, labels))


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder anew."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.report import write_report

        print(f"Report: {write_report(self.folder)}")


Command = Annotated[Quickstart, tyro.conf.subcommand("quickstart")] | Annotated[Report, tyro.conf.subcommand("report")]


def main() -> None:
    """Entry point: exit code 0 on success, 2 on bad input, 130 on Ctrl-C."""
    command = tyro.cli(
        Command, prog="prism", description="Robot demonstrations into visuomotor policies, measured honestly."
    )
    try:
        command.run()
    except PrismError as error:
        print(f"prism: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("prism: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
