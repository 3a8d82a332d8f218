"""What a GPU is wanted for, in calls of minutes, for a machine one has for half an hour: correctness first, then times.

PYTHONPATH=src:packages/prism-client/src python3 benchmarks/gpu_session.py --out $OUT --call 1     (then 2, then 3)

1. probe, gradients, resume, step: what the card can do; gradients against float64; a run that was stopped against one
   that was not, to the bit; the recipe's step (PRISM, two cameras, bfloat16, compiled) against eager and its floor,
   with a profile.
2. variants, loop: what one line changes about the step, one at a time; the training loop itself.
3. meanflow, sspool, 240px, ddp, oom, act, result: the rest. `result` trains on --dataset for the time that is left a
   policy small enough to come back: `cat run.tar.gz.* | tar xz` is its run folder, weights rounded to bfloat16.

Each stage is a process with a time limit of its own. What it measures is printed and written at once: numbers to
session.json, all lines to session.txt, the rest (profiles) to logs.tar.gz at the end. After gradients or a resume that
are wrong nothing is timed. A call ends within --minutes and leaves at most eight files of 15 MiB. Only what PyTorch,
NumPy and this library's networks need is imported. On a CPU: `--device cpu --sizes tiny --batch-size 4 --minutes 2`.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

STAGES = {
    "probe": 40,
    "gradients": 75,
    "resume": 150,
    "step": 400,
    "variants": 380,
    "loop": 200,
    "meanflow": 100,
    "sspool": 75,
    "240px": 75,
    "ddp": 60,
    "oom": 30,
    "act": 40,
    "result": math.inf,
}
"""The stages, and the seconds that each may take."""

CALLS = {
    "1": ("probe", "gradients", "resume", "step"),
    "2": ("probe", "variants", "loop"),
    "3": ("probe", "meanflow", "sspool", "240px", "ddp", "oom", "act", "result"),
}
MINUTES = {"1": 9.0, "2": 9.0, "3": 8.0}
PART = 15 * 2**20  # bytes of a file that may come back
UPDATES = {"paper": 500, "nano": 100, "tiny": 8}  # of `loop`


NEEDED = ("torch", "numpy", "h5py", "safetensors", "rich", "psutil", "scipy", "PIL", "prism_policy", "prism_client")
"""All that the stages import and Python does not bring along."""


def parser(one_stage: bool = False) -> argparse.ArgumentParser:
    """Of a call's command line, or of that of one of its stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", default="paper", choices=UPDATES)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--dataset", type=Path, help="demonstrations (robomimic's HDF5) for loop and result")
    if one_stage:
        parser.add_argument("stage", choices=STAGES)
        parser.add_argument("--until", type=float, required=True, help="when it is ended [s since 1970]")
    else:
        parser.add_argument("--call", choices=CALLS, default="1")
        parser.add_argument("--stages", nargs="+", choices=STAGES, help="instead of those of a call")
        parser.add_argument("--minutes", type=float, help="of the whole call; by default 9, 9 and 8")
    return parser


def run(stage: str, until: float, a: argparse.Namespace) -> int:
    """A stage in a process of its own, whose lines are printed as they come; its exit code."""
    command = [sys.executable, str(Path(__file__).with_name("gpu_stages.py")), stage, "--out", str(a.out)]
    command += ["--device", a.device, "--sizes", a.sizes, "--batch-size", str(a.batch_size), "--until", str(until)]
    command += ["--dataset", str(a.dataset)] if a.dataset else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    # All of the session: Inductor compiles in processes of its own.
    timer = threading.Timer(until - time.time(), os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    assert process.stdout
    with (a.out / "session.txt").open("a") as file:
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
    code = process.wait()
    timer.cancel()
    return code


def pack_logs(out: Path) -> None:
    """The logs as one file, as long as it may come back."""
    if (out / "logs").exists():
        with tarfile.open(out / "logs.tar.gz", "w:gz") as tar:
            tar.add(out / "logs", "logs")
        shutil.rmtree(out / "logs")
        if (out / "logs.tar.gz").stat().st_size > PART:
            (out / "logs.tar.gz").unlink()


def main() -> None:
    """Run the stages of a call, in turn, until its time is over."""
    a = parser().parse_args()
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        where = "set PYTHONPATH=src:packages/prism-client/src, and carry wheels of others"
        sys.exit(f"gpu_session needs {', '.join(missing)}: {where}")
    until, failed = time.time() + 60 * (a.minutes or MINUTES[a.call]), False
    a.out.mkdir(parents=True, exist_ok=True)
    for stage in a.stages or CALLS[a.call]:
        started = time.time()
        if until - started < 10:
            print(f"===== {stage}: no time left", flush=True)
            continue
        code = run(stage, min(until, started + STAGES[stage]), a)
        how = "done" if code == 0 else "failed" if code > 0 else "ended, its time is over"
        print(f"===== {stage}: {how} after {time.time() - started:.0f} s", flush=True)
        failed = failed or code != 0
        if code and stage in ("gradients", "resume"):
            print("===== nothing is timed that is not right", flush=True)
            break
    pack_logs(a.out)
    sys.exit(failed)


if __name__ == "__main__":
    main()
