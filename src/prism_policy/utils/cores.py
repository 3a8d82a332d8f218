"""Processor cores."""

import math
import os
from pathlib import Path

JOB = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS", "PBS_NUM_PPN", "NSLOTS", "LSB_DJOB_NUMPROC")
"""Where Slurm, PBS, Torque, Grid Engine and LSF write how many cores they gave the job, be it bound to them or not."""


def available_cores() -> int:
    """Number of cores this process may use: of the machine, of its container and of its job."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = [int(value) for name in JOB if (value := os.environ.get(name, "")).isdecimal()]
    return max(1, math.floor(min([bound, *job, *_quotas()])))


def _quotas(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """Cores' worth of time that the groups this process is in may take, by version 2 or 1 of Linux's control groups."""
    quotas = []
    for line in _read(proc).splitlines():
        _, controllers, place = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = root / controllers
            # Inside a container the place may be named as the machine sees it, and be mounted as the root.
            for group in (top, *(top / Path(*Path(place).parts[1:i]) for i in range(2, len(Path(place).parts) + 1))):
                words = _read(group / "cpu.max").split() or [
                    _read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
                ]
                if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
                    quotas.append(int(words[0]) / int(words[1]))
    return quotas


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
