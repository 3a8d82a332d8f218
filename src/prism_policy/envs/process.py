"""A worker process: it does one job after the other, and a job may ask its parent questions on the way."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from prism_policy.errors import PrismError


class WorkerLostError(Exception):
    """A worker died or was killed, for the reason given."""

    def __init__(self, reason: str, exit_code: int | None) -> None:
        super().__init__(reason)
        self.exit_code = exit_code

    @property
    def how(self) -> str:
        """How it ended, and what that suggests."""
        if str(self) != "died":  # but was ended from here
            return str(self)
        crash = self.exit_code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE)
        advice = "; a crash there is mostly OpenGL's: try MUJOCO_GL=osmesa" if crash else ""
        return how_it_ended(self.exit_code) + advice


class Worker:
    """A process that does one job after the other. `run` blocks; `kill`, from another thread, ends that."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads and an OpenGL context along
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
        with worker_start():
            self._process.start()
        theirs.close()
        self.owes, self.silent_s, self.started = False, 0.0, False
        """Whether an answer is due, for how long it has been [s] (the pool counts), and whether there ever was one."""
        self._reason = "died"

    def run(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], answer: Callable[[Any], Any] | None
    ) -> tuple[Any, float]:
        """What `function` returns, and the process's peak memory [MiB]; what a generator yields, `answer` answers."""
        kind, content = self._ask((function, arguments))
        while kind == "question":
            assert answer is not None
            try:
                answered = answer(content)
            except BaseException:
                self.kill("was ended")  # in the middle of a job it is of no use to the next one
                raise
            kind, content = self._ask(answered)
        if kind == "error":
            raise content
        return content

    def _ask(self, message: Any) -> tuple[str, Any]:
        try:
            self.owes, self.silent_s = True, 0.0
            self._connection.send(message)
            reply: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerLostError(self._reason, self._process.exitcode) from error
        self.owes, self.started = False, True
        return reply

    @property
    def alive(self) -> bool:
        """Whether the process is there, perhaps stopped."""
        return self._process.is_alive()

    def kill(self, reason: str) -> None:
        """End the process, also one that is stopped."""
        self._reason = reason
        self._process.kill()

    def close(self) -> None:
        """Free what belonged to a process that has ended."""
        self._process.join()
        self._connection.close()


@contextmanager
def worker_start() -> Iterator[None]:
    """Processes started within use one thread each and never see Ctrl-C, not even while they import.

    A physics step is too small to share among threads and suffers when it is; an interrupt is the parent's affair.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    main = threading.current_thread() is threading.main_thread()  # only that one may set handlers
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        del os.environ["OMP_NUM_THREADS"]
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads


def _work(connection: Connection, parent: int) -> None:
    """The life of a worker: jobs in, results and questions out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone or done
        while True:
            job = connection.recv_bytes()
            try:
                function, arguments = ForkingPickler.loads(job)  # which imports the function's module
                result = function(*arguments)
                if inspect.isgenerator(result):
                    result = _converse(result, connection)
                reply: tuple[str, Any] = ("result", (result, peak_rss_mib()))
            except Exception as error:
                if not isinstance(error, PrismError):  # whose sentence says it all
                    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
                reply = ("error", _portable(error))
            connection.send(reply)


def _portable(error: Exception) -> Exception:
    """The error, or, where it cannot be sent to another process, one that says the same."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
        portable.__notes__ = getattr(error, "__notes__", [])
        return portable
    return error


def _converse(questions: Generator[Any, Any, Any], connection: Connection) -> Any:
    """Send what a generator yields, give it the answers, and return what it returns."""
    answer = None
    while True:
        try:
            connection.send(("question", questions.send(answer)))
        except StopIteration as end:
            return end.value
        answer = connection.recv()


def _follow(parent: int) -> None:
    """A parent killed with -9 cannot end its workers; nobody should find them working on afterwards."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def peak_rss_mib() -> float:
    """The most memory that this process has had resident [MiB]; 0 where the system does not say."""
    status = Path("/proc/self/status")  # getrusage would count what the parent had when it forked
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def how_it_ended(exit_code: int | None) -> str:
    """The end of a process in words."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    short = " (as the kernel does where memory runs short)" if -exit_code == signal.SIGKILL else ""
    return f"killed by {name}{short}"
