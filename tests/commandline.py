"""`prism` in this process: the same words as from a shell, without seconds of imports for each command."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from prism_policy.cli.main import main


def prism(*arguments: object, cwd: Path | None = None, **environment: str) -> CompletedProcess[str]:
    """Exit code and what was printed; an exception that a shell would see as a traceback is one here, too.

    What is about processes (signals, kills, imports, a closed standard input) needs a real one.
    """
    words = ["prism", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", words),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:
            code = 130
        except Exception:
            traceback.print_exc()
            code = 1
    return CompletedProcess(words, int(code or 0), stdout.getvalue(), stderr.getvalue())
