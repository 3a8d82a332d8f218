"""`prism doctor` on files: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from commandline import prism
from community import RECORDED
from made_recording import clean, write
from prism_policy.doctor.finding import ADVICE, SEVERITIES, Place, finding, numbered, spread, worst_first

ROOT = Path(__file__).parents[2]
G1 = Path(os.environ.get("PRISM_LEROBOT_DATA") or ROOT.parent / "shared/data/lerobot")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("made") / "made.hdf5", clean())


def test_a_clean_file_is_clean(recording: Path) -> None:
    done = prism("doctor", recording)
    assert done.returncode == 0, done.stderr
    assert f"{recording}: 12 episodes, " in done.stdout
    assert "nothing found" in done.stdout
    assert "prism train --dataset" in done.stdout


def test_faults_of_a_file_are_told_worst_first(recording: Path, tmp_path: Path) -> None:
    with h5py.File(broken := tmp_path / "broken.hdf5", "w") as file, h5py.File(recording) as whole:
        whole.copy("data", file)
        file["data/demo_3/obs/robot0_eef_pos"][7, 1] = np.nan
        file["data/demo_5/actions"][10:19, 0] = 1.3
        file["data/demo_6/timestamps"][40:] += 1
        file["data/demo_8/obs/front_image"][20:24] = 0
        file["mask/train"] = np.array(["demo_0", "demo_1"], "S")
        file["mask/valid"] = np.array(["demo_1", "demo_2"], "S")
    page = tmp_path / "page.html"
    done = prism("doctor", broken, "--json", "--html", page)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    checks = [one["check"] for one in report["findings"]]
    assert checks == ["not-finite", "masks-share", "black-frames", "time-jumps", "action-range"]
    assert (report["errors"], report["warnings"], report["notes"], report["episodes"]) == (3, 2, 0, 11)
    assert report["findings"][0]["where"] == [{"episode": "demo_3", "steps": None, "part": ""}]
    assert report["findings"][2]["where"] == [{"episode": "demo_8", "steps": [20, 23], "part": "front"}]
    assert "9 of " in report["findings"][4]["what"]
    text = page.read_text()
    assert all(one["why"] in text.replace("&#39;", "'") for one in report["findings"])
    assert "<script" not in text
    printed = prism("doctor", broken)
    assert printed.returncode == 1
    titles = [
        line.partition(": ")[2] for line in printed.stdout.splitlines() if line.startswith(("error: ", "warning: "))
    ]
    assert titles == [ADVICE[check].title for check in checks]


def test_notes_alone_are_no_fault(recording: Path, tmp_path: Path) -> None:
    write(still := tmp_path / "still.hdf5", [replace(e, actions=e.actions * [1, 1, 1, 1, 0, 1, 1]) for e in clean()])
    done = prism("doctor", still)
    assert done.returncode == 0, done.stdout
    assert "note: Numbers that never change" in done.stdout


def test_masks_that_training_refuses_are_an_error(recording: Path, tmp_path: Path) -> None:
    write(masked := tmp_path / "masked.hdf5", clean(), {"train": ["demo_0", "demo_77"], "valid": ["demo_1"]})
    report = json.loads(prism("doctor", masked, "--json").stdout)
    assert [one["check"] for one in report["findings"]] == ["unusable-masks"]
    assert "demo_77" in report["findings"][0]["what"]


def test_a_human_demonstration_is_one_and_else_in_order() -> None:
    report = json.loads(prism("doctor", RECORDED, "--json").stdout)
    assert [one["check"] for one in report["findings"]] == ["few-episodes"]


@pytest.mark.slow
@pytest.mark.skipif(not G1.is_dir(), reason="needs the recording in shared/data/lerobot")
@pytest.mark.parametrize("version", ["unitree_g1_v21", "unitree_g1_v30"])
def test_a_real_recording_is_told_what_is_true_of_it(version: str) -> None:
    """Its camera repeats frames to the bit, and its hands answer at a quarter of its rate."""
    pytest.importorskip("pyarrow")
    report = json.loads(prism("doctor", G1 / version, "--json").stdout)
    checks = [one["check"] for one in report["findings"]]
    assert checks == ["duplicated-frames", "few-episodes", "slow-numbers"]
    assert "every 4 steps, 7.5 times a second" in report["findings"][2]["what"]


def test_a_name_cannot_break_the_page_or_the_terminal(recording: Path, tmp_path: Path) -> None:
    with h5py.File(odd := tmp_path / "odd.hdf5", "w") as file, h5py.File(recording) as whole:
        whole.copy("data", file)
        file.move("data/demo_3", "data/demo_03")
        file["data/demo_03/obs/front_image"][:2] = 0
        file.move("data/demo_03/obs/front_image", "data/demo_03/obs/<b>\x1b[2J_image")
        for i in {*range(12)} - {3}:
            file.move(f"data/demo_{i}/obs/front_image", f"data/demo_{i}/obs/<b>\x1b[2J_image")
    done = prism("doctor", odd, "--html", tmp_path / "page.html")
    assert done.returncode == 1, done.stderr
    assert "\x1b[2J" not in done.stdout
    assert "<b>\x1b" not in (tmp_path / "page.html").read_text()


def test_every_check_says_why_and_what_to_do_and_stands_in_the_docs() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    for check, advice in ADVICE.items():
        assert advice.severity in SEVERITIES
        assert advice.why.endswith(".")
        assert advice.do.endswith(".")
        assert f"`{check}`" in page, check


def test_findings_are_sorted_and_places_are_words() -> None:
    some = [finding("unknown-rate", "a"), finding("spikes", "b"), finding("not-finite", "c")]
    assert [one.check for one in worst_first(some)] == ["not-finite", "spikes", "unknown-rate"]
    assert str(Place("demo_1", (3, 3), "wrist")) == "demo_1, step 3, wrist"
    assert str(Place("demo_1", (3, 4))) == "demo_1, steps 3 to 4"
    assert (numbered(1, "episode"), numbered(2, "episode", 3)) == ("1 episode", "2 of 3 episodes")
    assert (spread([1.0, 1.0], "%"), spread([1.0, 2.5])) == ("1%", "1 to 2.5")
