"""Training beside another process: with one thread, with two, and with as many as it chooses again and again.

python benchmarks/shared_machine.py [--seconds 30] [--rounds 3] [--busy 1] [--nice 0]

Each trains at nano size, alone in turn: `--seconds` with nobody else, as long beside `--busy` processes that never
rest, of as much less priority as `--nice` says, and again with nobody. Windows a second are of each phase after its
first ten seconds, in which the number of threads is found; "found" is when the rate over two seconds was first 90% of
that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from training_step import some_windows

from prism_policy.config import presets
from prism_policy.run_folder import open_run
from prism_policy.training.trainer import Trainer

BATCH = 64
FIND_S = 10.0
MODES = {"one thread": {"OMP_NUM_THREADS": "1"}, "all cores": {"OMP_NUM_THREADS": str(os.cpu_count())}, "chosen": {}}


def train() -> None:
    """Train until killed, and print a line an update: the threads it has."""
    config = presets.nano()
    settings = replace(config.train, steps=10**6, batch_size=BATCH, noise_draws=1, log_every=1)
    settings = replace(settings, rollout_every=0, keep_every=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        open_run(run, replace(config, train=settings))
        trainer = Trainer(
            run, replace(config, train=settings), some_windows(), lambda done, line: print(line["threads"], flush=True)
        )
        trainer.train()


def phases(environment: dict[str, str], seconds: float, busy: int, nice: int) -> list[list[float]]:
    """When updates were done since the beginning of each phase [s]."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done: list[float] = []
    with subprocess.Popen(
        [sys.executable, __file__, "--train"], env={**clean, **environment}, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout
        lines = training.stdout
        lines.readline()

        def note() -> None:
            for _ in lines:
                done.append(time.monotonic())

        threading.Thread(target=note, daemon=True).start()
        time.sleep(FIND_S)
        found = []
        for others in (0, busy, 0):
            with contextlib.ExitStack() as stack:
                for _ in range(others):
                    command = ["nice", "-n", str(nice), sys.executable, "-c", "while True: pass"]
                    other = stack.enter_context(subprocess.Popen(command))
                    stack.callback(other.kill)
                start = time.monotonic()
                time.sleep(seconds)
                found.append([when - start for when in done if when > start])
        training.kill()
    return found


def main() -> None:
    """Print a row a phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--train", action="store_true", help="be the training")
    options = parser.parse_args()
    if options.train:
        train()
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {options.rounds} rounds")
    rates: dict[str, list[list[float]]] = {mode: [[], [], []] for mode in MODES}
    found: list[list[float]] = [[], [], []]
    for _ in range(options.rounds):
        for mode, environment in MODES.items():
            for phase, times in enumerate(phases(environment, options.seconds, options.busy, options.nice)):
                steady = [when for when in times if when > FIND_S]
                rates[mode][phase].append(BATCH * len(steady) / (options.seconds - FIND_S))
                if mode == "chosen":
                    found[phase].append(first(times, 0.9 * rates[mode][phase][-1] / BATCH))
    print(f"| | {' | '.join(MODES)} | of the better | found after |")
    print("|---|---|---|---|---|---|")
    for phase, name in enumerate(("alone", f"beside {options.busy}", "alone again")):
        each = {mode: statistics.median(rates[mode][phase]) for mode in MODES}
        better = max(rate for mode, rate in each.items() if mode != "chosen")
        cells = " | ".join(f"{rate:.0f}" for rate in each.values())
        print(f"| {name} | {cells} | {each['chosen'] / better:.0%} | {max(found[phase]):.0f} s |")


def first(times: list[float], rate: float) -> float:
    """The end of the first two seconds with that many updates a second [s]."""
    return next((t for t in times if t > 2 and sum(t - 2 < x <= t for x in times) >= 2 * rate), float("nan"))


if __name__ == "__main__":
    main()
