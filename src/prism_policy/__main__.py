"""`prism`, also as `python -m prism_policy`: Ctrl-C is an end with one line from here on, during the imports too."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_interrupted = False


def _interrupt(number: int, frame: Any) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def repeat_lost_interrupt(lost: sys.UnraisableHookArgs) -> None:
    """Send Ctrl-C again where Python drops its exception, as it does while it destroys an object."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        import threading

        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Run a command: exit code 0 on success, 2 on bad input, 130 on Ctrl-C."""
    sys.unraisablehook = repeat_lost_interrupt
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from prism_policy.cli.main import main as run

        run()
    except BaseException as error:
        # Compiled code may turn the interrupt into an error of its own: "numpy's C extensions failed to import".
        if not (_interrupted or isinstance(error, KeyboardInterrupt)):
            raise
        sys.stderr.write("prism: stopped; the same command goes on from here\n")
        sys.exit(130)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor does the interpreter's own end print a traceback


if __name__ == "__main__":
    main()
