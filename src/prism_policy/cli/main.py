"""The command `prism`. Torch and the simulator are imported only by the command that needs them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Annotated, Union

import tyro

from prism_policy.cli.command import Command
from prism_policy.cli.demos import Collect, Download, Export, Import, Render
from prism_policy.cli.deploy import Pull, Push, Serve
from prism_policy.cli.doctor import Doctor
from prism_policy.cli.encoders import Info, Probe
from prism_policy.cli.evaluate import Compare, Evaluate, Report
from prism_policy.cli.paper import Reproduce
from prism_policy.cli.robot import Record, Robot, Rollout, Trials
from prism_policy.cli.saliency import Saliency
from prism_policy.cli.train import Quickstart, Train
from prism_policy.errors import PrismError
from prism_policy.utils.progress import Heartbeat
from prism_policy.utils.terminal import errors, shell

ABOUT = "Turn robot demonstrations into visuomotor policies, and measure them."
COMMANDS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "reproduce": Reproduce,
    "saliency": Saliency,
    "serve": Serve,
    "push": Push,
    "pull": Pull,
    "robot": Robot,
    "record": Record,
    "rollout": Rollout,
    "trials": Trials,
    "report": Report,
    "collect": Collect,
    "render": Render,
    "import": Import,
    "export": Export,
    "download": Download,
    "info": Info,
    "doctor": Doctor,
    "probe": Probe,
}


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """The work that the command line asks for."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if name in COMMANDS:
        return COMMANDS[name].parse(rest, f"prism {name}")
    summaries = {n: (command.__doc__ or "").partition("\n")[0] for n, command in COMMANDS.items()}
    commands = tuple(Annotated[c, tyro.conf.subcommand(n, description=summaries[n])] for n, c in COMMANDS.items())
    tyro.cli(Union[commands], args=list(arguments[:1]), prog="prism", description=ABOUT)  # type: ignore[call-overload] # noqa: UP007
    raise AssertionError("tyro has exited")


def _parsed(arguments: Sequence[str]) -> Callable[[], None]:
    """As `parse`; ends quietly where nobody reads the help to its end, as in `prism --help | head`."""
    try:
        return parse(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed goes there
        sys.exit(1)


def main() -> None:
    """Run a command: exit code 0 on success, 2 on bad input; `doctor` gives 1 where it found a fault."""
    arguments = sys.argv[1:]
    launched = "TORCHELASTIC_ERROR_FILE" in os.environ  # one of several processes
    # Of several processes the one that started them says that they are alive; a server has nothing to say by itself.
    silent = launched or arguments[:1] == ["serve"]
    try:
        with nullcontext() if silent else Heartbeat("prism " + shell(*arguments[:1])):
            _parsed(arguments)()
    except (Exception, KeyboardInterrupt) as error:
        code = 2 if isinstance(error, PrismError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        if launched:
            from prism_policy.training.distributed import record_failure

            if record_failure(error):  # the one that launched it says why
                sys.exit(code)
        if isinstance(error, PrismError):
            errors.print(f"prism: {error}")
        elif isinstance(error, OSError) and error.filename:  # nobody knew more to say
            errors.print(f"prism: {error.filename}: {error.strerror}; is it there, and may it be read and written?")
            code = 2
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            errors.print(f"prism: cannot write the output ({error.strerror})")
            code = 2
        elif not launched:
            raise
        sys.exit(code)
