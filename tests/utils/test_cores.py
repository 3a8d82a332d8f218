"""The cores of the job count, not the machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prism_policy.utils import cores
from prism_policy.utils.cores import JOB, available_cores


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores, none of them anybody's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "_quotas", list)
    for name in JOB:
        monkeypatch.delenv(name, raising=False)


def test_without_a_job_all_that_the_process_is_bound_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert available_cores() == 2


@pytest.mark.parametrize("name", JOB)
def test_a_schedulers_word_counts_where_it_binds_nobody(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "6")
    assert available_cores() == 6
    for nonsense in ("", "0", "4(x2)", "-3", "1000"):
        monkeypatch.setenv(name, nonsense)
        assert available_cores() == (1 if nonsense == "0" else 64)


@pytest.mark.parametrize(
    ("groups", "files", "quotas"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, [2.5]),  # a container, seen from inside
        ("0::/job/step\n", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, [4.0]),
        ("3:cpu,cpuacct:/job\n1:cpuset:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000",
                                                 "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, [3.0]),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("", {}, []),
        ("1:memory:/x\n0::/\n", {"cpu.max": "nonsense"}, []),
    ],
)  # fmt: skip
def test_a_containers_share_of_time_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], quotas: list[float]
) -> None:
    monkeypatch.undo()
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(set(cores._quotas(tmp_path / "cgroup", tmp_path))) == quotas


@pytest.mark.parametrize(("quota", "count"), [(2.5, 2), (0.5, 1), (100.0, 64)])
def test_a_share_of_a_core_is_one(monkeypatch: pytest.MonkeyPatch, quota: float, count: int) -> None:
    monkeypatch.setattr(cores, "_quotas", lambda: [quota])
    assert available_cores() == count
