import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, Page
from prism_policy.config import presets
from prism_policy.config.config_json import to_json
from prism_policy.errors import PrismError
from prism_policy.reports.charts import loss_curve
from prism_policy.reports.report import choose_episodes, write_report
from prism_policy.utils.video import mark_outcome, write_video

OUTCOMES = [True, True, True, True, True, True, True, False, True, True]


def write_run(folder: Path, **changes: object) -> Path:
    """A run folder as quickstart leaves it, with made-up numbers and moving squares for videos."""
    rng = np.random.default_rng(0)
    place = "last/evaluate-s0"
    for name in (f"results/{place}", f"videos/{place}", "figures"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(to_json(presets.nano()))
    losses = np.exp(-np.linspace(0, 3, 100)) * rng.lognormal(0, 0.3, 100)
    rows = [
        {
            "step": 10 * i + 10,
            "loss": float(v),
            "lr": 1e-3,
            "samples_per_s": 110 + float(rng.normal()),
            "wall_s": 0.5 * i,
        }
        for i, v in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    summary = {
        "success_rate": 0.9, "n_episodes": 10, "n_success": 9, "wilson_95": [0.596, 0.982], "seed": 0, "task": "lift",
        "policy": "flow_matching", "encoder": "prism", "peak_rss_mib": 1834.2,
        "wall_s": {"demos": 71.2, "render": 40.1, "train": 301.7, "evaluate": 55.3, "report": 3.2},
    }  # fmt: skip
    (folder / "results" / "summary.json").write_text(json.dumps(summary | changes))
    episodes = [{"episode": i, "success": s, "steps": 61 + 3 * i if s else 400} for i, s in enumerate(OUTCOMES)]
    (folder / "results" / place / "episodes.jsonl").write_text("".join(json.dumps(e) + "\n" for e in episodes))
    for i, success in enumerate(OUTCOMES):
        frames = np.full((20, 84, 168, 3), 200, np.uint8)
        for t, frame in enumerate(frames):
            frame[30:50, 4 * t : 4 * t + 20] = (200, 40 + 20 * i, 60)
        text = f"episode {i} · {'success' if success else 'failed'} · {episodes[i]['steps']} steps"
        write_video(folder / "videos" / place / f"episode_{i:03d}.mp4", mark_outcome(frames, text, success), fps=20)
    for name in ("saliency", "keypoints"):
        Image.fromarray(rng.integers(0, 255, (60, 120, 3), np.uint8)).resize((1200, 600)).save(
            folder / "figures" / f"{name}.png"
        )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


class Loads(HTMLParser):
    """Addresses that a browser would load for the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "poster", "data", "action")]


def test_report_loads_nothing_from_elsewhere(run: Path) -> None:
    page = write_report(run).read_text()
    loads = Loads(page)
    assert loads.addresses
    assert all(address.startswith(("data:video/mp4;base64,", "data:image/png;base64,")) for address in loads.addresses)
    assert not loads.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"@import|url\(", page)


def test_report_tells_the_result_and_its_interval(run: Path) -> None:
    page = write_report(run).read_text()
    for expected in ("90%", "9 of 10 episodes", "59.6% to 98.2%", "flow matching", "1,834 MiB", "policy.encoder.width"):
        assert expected in page
    assert page.count("<video") == 7  # the first six and the first failure, number 7


def test_videos_are_chosen_by_number_with_one_of_each_outcome() -> None:
    episodes = [{"episode": i, "success": i in (8, 9), "steps": 5} for i in range(10)]
    assert [e["episode"] for e in choose_episodes(episodes)] == [0, 1, 2, 3, 4, 5, 8]


def test_text_from_the_run_folder_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    folder = write_run(tmp_path / "<b>run'", task=hostile, encoder=hostile, wall_s={hostile: 3.0})
    page = write_report(folder).read_text()
    assert "<script" not in page
    assert "<b>run" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;" in page


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", wall_s={})
    for part in ("figures", "videos"):
        shutil.rmtree(folder / part)
    (folder / "metrics.jsonl").unlink()
    page = write_report(folder).read_text()
    for missing in ("figures/saliency.png", "figures/keypoints.png", "No videos", "metrics.jsonl", "no times"):
        assert missing in page
    (folder / "results" / "last" / "evaluate-s0" / "episodes.jsonl").unlink()
    assert "No episodes.jsonl of this checkpoint" in write_report(folder).read_text()


def test_losses_that_are_not_finite_do_not_reach_the_curve(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    rows = [{"step": i, "loss": v, "lr": 1.0} for i, v in enumerate([1.0, math.nan, math.inf, 0.0, 0.5, 0.25])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 7, "lo')
    page = write_report(folder).read_text()
    assert "3 logged losses" in page
    assert not re.search(r'points="[^"]*(nan|inf)', page)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"success_rate": 2, "n_episodes": 1, "wilson_95": [0, 1]}', "{}"])
def test_a_summary_missing_or_damaged_is_an_error(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "config.json").write_text(to_json(presets.nano()))
    (tmp_path / "results").mkdir()
    if text is not None:
        (tmp_path / "results" / "summary.json").write_text(text)
    with pytest.raises(PrismError, match=r"summary\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_report_opens_in_a_browser_and_its_videos_play(run: Path, tmp_path: Path) -> None:
    with Page(write_report(run).as_uri()) as page:
        page.wait_for("[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && v.currentTime > 0.1)")
        assert page.evaluate("[...document.querySelectorAll('video')].map(v => v.duration)") == pytest.approx([1.0] * 7)
        assert page.evaluate("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)")
        page.screenshot(tmp_path / "report.png")
        assert page.complaints() == []
        # Videos and pictures are data: addresses; the one file is the report itself.
        assert {url.split(":")[0] for url in page.requests()} <= {"file", "data", "about"}
        assert [url for url in page.requests() if url.startswith("file")] == [(run / "report.html").as_uri()]
    assert Image.open(tmp_path / "report.png").height > 1400


def test_checkpoints_seeds_and_failures_are_shown(tmp_path: Path) -> None:
    seeds = {str(i): {"success_rate": rate} for i, rate in enumerate((0.8, 0.9))}
    row = {
        "n_success": 17, "n_episodes": 20, "success_rate": 0.85, "wilson_95": [0.64, 0.948], "seeds": seeds,
        "mean_over_seeds": 0.85, "std_over_seeds": 0.0707,
    }  # fmt: skip
    ten = {"mean": 0.625, "std": 0.042, "checkpoints": ["100", "200"]}
    checkpoints = {"last": row, "best": row}
    failures = {"grasped": 2, "": 1}
    run = write_run(tmp_path / "run", checkpoints=checkpoints, mean_of_last_10=ten, failures_by_stage=failures)
    page = write_report(run).read_text()
    for expected in ("17 of 20", "85% ± 7.1%", "0: 80%, 1: 90%", "62.5% ± 4.2%", "<td>best</td>"):
        assert expected in page
    assert page.index("<td>grasped</td><td>2</td>") < page.index("<td>nothing</td><td>1</td>")


def test_a_failed_episode_is_shown_with_its_saliency(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert "saliency beside it" not in write_report(folder).read_text()
    videos = folder / "videos" / "last" / "evaluate-s0"
    (folder / "figures" / "last" / "evaluate-s0").mkdir(parents=True)
    shutil.copy(videos / "episode_007.mp4", folder / "figures" / "last" / "evaluate-s0" / "episode_007_saliency.mp4")
    page = write_report(folder).read_text()
    assert "File: figures/last/evaluate-s0/episode_007_saliency.mp4." in page
    assert page.count('src="data:video/mp4') == 8  # six by number, the first failure, and its saliency


@pytest.mark.parametrize("losses", [[1.7e308, 1e-300], [5e-324, 1e-323], [2.0, 2.0], [0.5, 0.4]])
def test_a_loss_curve_has_a_few_ticks_near_it_whatever_the_losses(losses: list[float]) -> None:
    ticks = [float(label) for _, label in loss_curve(list(enumerate(losses)))["rows"]]
    assert 1 <= len(ticks) <= 24
    assert all(min(losses) / 2 <= tick <= max(2 * max(losses), 1e-307) for tick in ticks)
