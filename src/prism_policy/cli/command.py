"""What the commands have in common: a dataclass whose fields are the flags, parsed by tyro."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Self

import tyro

from prism_policy.config import presets
from prism_policy.config.ranges import Seed, check_ranges
from prism_policy.config.settings import PolicyKind, RunConfig

Flat = tyro.conf.arg(name="")
"""Of a config inside a command: its fields are flags without a prefix."""
PLAIN = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
"""Help that says FILE instead of PATH, and offers neither None nor the flag that a default already is."""


@dataclass(frozen=True)
class Command:
    """A command: its docstring and its fields' are the help, `run` does the work."""

    def __post_init__(self) -> None:
        """Refuse numbers out of the ranges that stand at the fields, before anything is made."""
        check_ranges(self, flat=True)  # as their flags are

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> Callable[[], None]:
        """Return the work that these arguments ask for."""
        return tyro.cli(cls, args=list(arguments), prog=prog, config=PLAIN).run

    def run(self) -> None:
        """Do the work and print where the result lies and what to run next."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunCommand(Command):
    """A command that trains: its own flags choose the defaults of all settings of a run, dotted flags change them."""

    task: Annotated[str, tyro.conf.arg(name="task.name", aliases=("--task",))] = ""
    """Task to learn: lift, can, square or tool_hang, a LIBERO suite such as libero_spatial, or recorded for a dataset
    that nothing simulates; by default the dataset's, else lift."""
    policy: Annotated[PolicyKind, tyro.conf.arg(name="policy.kind", aliases=("--policy",))] = "flow_matching"
    """Generative model of the actions."""
    encoder: Annotated[str, tyro.conf.arg(help=f"Visual encoder: {', '.join(presets.ENCODERS)}.")] = "prism"
    seed: Seed = 0
    """Seed of weights, batches and noise; also of scripted demonstrations and of evaluated episodes."""
    help_all: bool = False
    """List every other setting with its default, then exit."""

    def defaults(self) -> RunConfig:
        """The settings before dotted flags change them."""
        raise NotImplementedError

    def train(self, config: RunConfig, arguments: Sequence[str] = ()) -> None:
        """Do the work with these settings; `arguments` start other processes that do the same."""
        raise NotImplementedError

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> Callable[[], None]:
        """Return the training that these arguments ask for."""
        command, config = cls.parse_run(arguments, prog)
        return partial(command.train, config, arguments)

    @classmethod
    def parse_run(cls, arguments: Sequence[str], prog: str = "prism") -> tuple[Self, RunConfig]:
        """Return the command and the settings of its run; raises as `parse`."""
        command, settings = tyro.cli(cls, args=list(arguments), prog=prog, return_unknown_args=True, config=PLAIN)
        if command.help_all:
            settings = ["--help"]
        return command, tyro.cli(RunConfig, args=settings, prog=prog, default=command.defaults())


def value_of(flag: str, arguments: Sequence[str], default: str) -> str:
    """Return the value of a flag on which the defaults of others depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", default=default)
    return str(parser.parse_known_args(arguments)[0].value)
