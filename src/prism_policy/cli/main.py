"""The command `prism`. Torch and the simulator are imported only by the command that needs them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Union

import tyro

from prism_policy.cli.command import Command
from prism_policy.cli.demos import Collect, Download, Import, Render
from prism_policy.cli.deploy import Serve
from prism_policy.cli.encoders import Info, Probe
from prism_policy.cli.evaluate import Compare, Evaluate, Report
from prism_policy.cli.paper import Reproduce
from prism_policy.cli.saliency import Saliency
from prism_policy.cli.train import Quickstart, Train
from prism_policy.errors import PrismError

ABOUT = "Turn robot demonstrations into visuomotor policies, and measure them."
COMMANDS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "reproduce": Reproduce,
    "saliency": Saliency,
    "serve": Serve,
    "report": Report,
    "collect": Collect,
    "render": Render,
    "import": Import,
    "download": Download,
    "info": Info,
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


def repeat_lost_interrupt(lost: sys.UnraisableHookArgs) -> None:
    """Send Ctrl-C again where Python drops its exception, as it does while it destroys an object."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Run a command: exit code 0 on success, 2 on bad input, 130 on Ctrl-C."""
    sys.unraisablehook = repeat_lost_interrupt
    launched = "TORCHELASTIC_ERROR_FILE" in os.environ  # one of several processes
    try:
        parse(sys.argv[1:])()
    except PrismError as error:
        _report(f"prism: {error}", error, launched)
        sys.exit(2)
    except KeyboardInterrupt as error:
        _report("prism: stopped; the same command goes on from here", error, launched)
        sys.exit(130)
    except Exception as error:
        if not launched:
            raise
        _report("", error, launched)
        sys.exit(1)


def _report(message: str, error: BaseException, launched: bool) -> None:
    """Print the message, or hand the error to the launcher, which prints one for all processes."""
    if not launched:
        print(message, file=sys.stderr)
        return
    from prism_policy.training.distributed import record_failure

    record_failure(error)
