"""`prism`, also as `python -m prism_policy`: Ctrl-C is an end with one line from here on, during the imports too."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

STOPPED = "prism: stopped; the same command goes on from here\n"


def interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, or end at once within an import, where compiled code loses it or makes it an error."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, STOPPED.encode())
            os._exit(130)
        frame = frame.f_back
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
        signal.signal(signal.SIGINT, interrupt)
    try:
        from prism_policy.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write(STOPPED)
        sys.exit(130)
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor does the interpreter's own end print a traceback


if __name__ == "__main__":
    main()
