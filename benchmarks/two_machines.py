"""What training over machines without a common folder moves, and that it ends with one process's weights.

python benchmarks/two_machines.py DEMOS.hdf5 OUT [--machines 2] [--updates 16]

Each machine is a folder: home, cache, demonstrations and working directory of its own, one process of torchrun in it.
What moves is counted by the loopback interface (nothing else may use it), between a training of so many updates and one
of three times as many: start and rendezvous cancel. The network is nano's with a U-Net a quarter as wide.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
from elsewhere import output_of

from prism_policy.run_folder import read_tensors

NETWORK = """
--encoder sspool --policy.down-dims 16 32 64 --policy.step-embed-dim 16 --train.batch-size 8 --train.warmup-steps 2
--train.rollout-every 0 --train.log-every 0 --train.eps 0.01
"""
"""A large epsilon, for with a small one Adam makes rounding, where the gradient vanishes, as large as a true step."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def loopback() -> int:
    """Bytes sent over the loopback interface until now."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def command(name: str, updates: int) -> list[str]:
    """`prism train` of a machine's demonstrations, after the name of what starts it."""
    run = ["prism_policy", "train", "--dataset", "demos.hdf5", "--out", name, "--train.steps", str(updates)]
    return ["-m", *run, *NETWORK.split()]


def environment(machine: Path) -> dict[str, str]:
    """Of a machine's processes."""
    own = {"HOME": str(machine), "PRISM_CACHE": str(machine / "cache"), "OMP_NUM_THREADS": "1"}
    return os.environ | own


def together(machines: list[Path], name: str, updates: int) -> int:
    """Train on all machines; returns the bytes that were moved."""
    port, before = free_port(), loopback()
    nodes = ("--nnodes", str(len(machines)), "--nproc-per-node", "1", "--master-addr", "127.0.0.1")
    nodes += ("--master-port", str(port))
    processes = []
    for rank, machine in enumerate(machines):
        start = [sys.executable, "-m", "torch.distributed.run", *nodes, "--node-rank", str(rank)]
        log = (machine / f"{name}.log").open("w")
        run = [*start, *command(name, updates)]
        processes.append(subprocess.Popen(run, cwd=machine, env=environment(machine), stdout=log, stderr=log))
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"a machine failed: see {name}.log in {', '.join(map(str, machines))}")
    return loopback() - before


def main() -> None:
    """Train alone and on all machines, and print what was moved and how far the weights are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--updates", type=int, default=16)
    arguments = parser.parse_args()
    machines = [arguments.out.absolute() / f"machine{i}" for i in range(arguments.machines)]
    for machine in machines:
        machine.mkdir(parents=True)
        shutil.copy2(arguments.demos, machine / "demos.hdf5")
    first = machines[0]
    output_of([sys.executable, *command("alone", arguments.updates)], cwd=first, env=environment(first))
    together(machines, "warm", arguments.updates)  # every cache is filled
    short = together(machines, "short", arguments.updates)
    long = together(machines, "long", 3 * arguments.updates)
    alone, shared = (read_tensors(first / name / "weights.safetensors")[0] for name in ("alone", "short"))
    weights = sum(x.numel() for x in alone.values())
    apart = max(float((alone[name] - shared[name]).abs().max()) for name in alone)
    largest = max(float(x.abs().max()) for x in alone.values())
    moved = (long - short) / (2 * arguments.updates) / len(machines)
    print(f"{len(machines)} machines, {weights:,} weights, {arguments.updates} updates")
    print(f"weights apart from one process's by at most {apart:.2g} (the largest is {largest:.3g})")
    print(f"each machine sends {moved:,.0f} bytes an update, {moved / weights:.2f} a weight")
    print(f"at a start {short - (long - short) / 2:,.0f} bytes in all")


if __name__ == "__main__":
    main()
