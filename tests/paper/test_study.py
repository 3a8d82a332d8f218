"""The study's plan, its file of cells, and what its report makes of made-up cells."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import prism
from prism_policy.config.settings import check
from prism_policy.errors import PrismError
from prism_policy.paper import study
from prism_policy.paper.study import Cell, Line, missing_cells, plan_cells, read_cells, run_cells, settings
from prism_policy.paper.study_report import CLAIMS, Finding, correlations, findings, report
from prism_policy.probe.ridge import ridge_error

Rates = dict[str, float]


def made_up(cell: Cell, rate: float, n: int = 50) -> Line:
    """A line whose outcomes follow from the seed (the same luck for all encoders) and the rate."""
    rng = np.random.default_rng([cell.seed, len(cell.regime.name)])
    luck, own = rng.random(n), np.random.default_rng([cell.seed, *cell.encoder.encode()]).normal(0, 0.03)
    return {
        "regime": cell.regime.name,
        "encoder": cell.encoder,
        "seed": cell.seed,
        "settings": settings(cell.regime),
        "successes": "".join("1" if x < rate + own else "0" for x in luck),
        "stages": {"lifted": 1},
        "valid_loss": 1 - rate + own,
        "valid_action_error": 0.1,
        "probe_cm": 5 * own,
        "saliency_lift": rate + own,
        "saliency_entropy": 0.9,
        "train_s": 100.0,
        "evaluate_s": 60.0,
        "probe_s": 20.0,
        "weights": "0",
        "commit": "abc",
        "processor": "a processor",
    }


RATES: Rates = {
    "sspool": 0.6, "avgpool": 0.3, "maxpool": 0.6, "nopool": 0.9, "ms_sspool": 0.62, "prism": 0.95,
    "sspool-truncated": 0.6, "avgpool-truncated": 0.05, "sspool-shuffled": 0.1, "ms_sspool-refined": 0.6,
}  # fmt: skip


def all_lines(rates: Callable[[str], float] = RATES.__getitem__, seeds: int = 8) -> list[Line]:
    return [made_up(cell, rates(cell.encoder)) for cell in plan_cells(range(seeds))]


def verdicts(lines: list[Line]) -> dict[tuple[str, str, str], Finding]:
    return {(f.claim.a, f.claim.b, f.claim.measure): f for f in findings(lines) if f.regime == lines[0]["regime"]}


def test_stopped_anywhere_the_seeds_before_are_complete_and_the_main_comparison_comes_first() -> None:
    cells = plan_cells()
    assert len(cells) >= 100
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)
    for regime in {c.regime for c in cells}:
        assert [c.encoder for c in cells if (c.regime, c.seed) == (regime, 0)][:4] == [
            "sspool", "avgpool", "ms_sspool", "prism"
        ]  # fmt: skip
    assert len({c.seed for c in cells}) >= 6
    assert {e for claim in CLAIMS for e in (claim.a, claim.b)} == set(study.ENCODERS)


def test_all_encoders_of_a_seed_learn_from_the_same_demonstrations_and_meet_the_same_episodes() -> None:
    for cell in plan_cells(seeds=[3]):
        config = cell.config
        check(config)
        assert (config.seed, config.demos.seed, config.evaluate.seed) == (3, 3, 3)
        assert (config.evaluate.split, config.evaluate.n_episodes) == ("evaluate", 50)
        assert config.demos.num_demos == cell.regime.num_demos
        assert config.policy.encoder.truncate == cell.encoder.endswith("truncated")
        assert config.policy.encoder.shuffle_keypoints == cell.encoder.endswith("shuffled")
        assert config.policy.encoder.refine == (cell.encoder in ("prism", "ms_sspool-refined"))


def test_the_plan_tells_nothing_else_is_accepted() -> None:
    with pytest.raises(PrismError, match="no encoders 'resnet'; it has sspool"):
        plan_cells(encoders=["resnet"])
    with pytest.raises(PrismError, match="no tasks 'can'"):
        plan_cells(tasks=["can"])
    with pytest.raises(PrismError, match="seeds: expected at least one"):
        plan_cells(seeds=[])


def test_a_finished_cell_is_a_line_and_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, journal = plan_cells(seeds=[0])[:3], tmp_path / "study" / "cells.jsonl"
    run: list[str] = []

    def fake(cell: Cell, folder: Path) -> Line:
        if len(run) == 2:
            raise KeyboardInterrupt
        run.append(folder.name)
        return made_up(cell, 0.5)

    monkeypatch.setattr(study, "measure", fake)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, journal, tmp_path / "cells")
    assert len(read_cells(journal)) == 2
    with journal.open("a") as file:
        file.write('{"regime": "ne')  # cut off by a kill
    run.clear()
    missing = missing_cells(cells, read_cells(journal))
    assert missing == cells[2:]
    run_cells(missing, journal, tmp_path / "cells")
    assert [line["encoder"] for line in read_cells(journal)] == [c.encoder for c in cells]
    run_cells(cells, journal, tmp_path / "cells")
    assert len(run) == 1


def test_cells_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    cells = plan_cells(seeds=[0])
    other = made_up(cells[0], 0.5) | {"settings": "lift, 2 views"}
    with pytest.raises(PrismError, match="was measured with lift, 2 views, and now is"):
        missing_cells(cells, [other])
    journal = tmp_path / "cells.jsonl"
    journal.write_text(json.dumps({"regime": "near"}) + "\n")
    with pytest.raises(PrismError, match="expected cells of `prism reproduce study`"):
        read_cells(journal)


def test_the_cost_is_that_of_the_most_alike_cells() -> None:
    cells = plan_cells(seeds=[0, 1])
    assert study.estimate(cells, []) is None
    lines = [made_up(cells[0], 0.5), made_up(cells[1], 0.5) | {"train_s": 1000.0}]
    assert study.estimate([c for c in cells if c.encoder == cells[1].encoder], lines) == pytest.approx(4 * 1080)


def test_true_differences_are_found_and_false_ones_are_not() -> None:
    found = verdicts(all_lines())
    assert found["sspool", "avgpool", "success"].verdict == "supported"
    assert found["sspool", "nopool", "success"].verdict == "refuted"
    assert found["sspool-shuffled", "sspool", "success"].verdict == "supported"
    assert found["avgpool-truncated", "avgpool", "success"].verdict == "supported"
    assert found["prism", "sspool", "success"].verdict == "supported"
    assert found["sspool", "nopool", "saliency_lift"].verdict == "refuted"
    estimate = found["sspool", "avgpool", "success"].estimate
    assert estimate is not None
    assert estimate.low < 0.3 < estimate.high


def test_few_trainings_decide_nothing() -> None:
    found = verdicts(all_lines(seeds=1))
    assert {f.verdict for f in found.values()} == {"not measured"}
    alike = verdicts(all_lines(lambda encoder: 0.5, seeds=3))
    assert alike["sspool", "avgpool", "success"].verdict == "undecided"
    assert (alike["sspool", "avgpool", "success"].needed or 0) >= 2


def test_many_alike_trainings_refute_a_difference_and_support_a_likeness() -> None:
    lines = all_lines(lambda encoder: 0.5, seeds=60)
    found = verdicts(lines)
    assert found["sspool-truncated", "sspool", "success"].verdict == "supported"
    assert found["sspool", "avgpool", "success"].verdict == "refuted (alike within 5 points)"


def test_correction_counts_all_claims_of_all_regimes() -> None:
    lines = all_lines()
    success = [f for f in findings(lines) if f.claim.measure == "success"]
    raw = [f.estimate.p_value for f in success if f.estimate is not None]
    assert min(f.corrected for f in success) == pytest.approx(min(1.0, len(raw) * min(raw)))
    assert all(f.corrected >= p for f, p in zip(success, raw, strict=True))


def test_what_goes_with_success_is_told_from_what_does_not() -> None:
    found = correlations(all_lines())
    assert found["valid_loss"].high < -0.5
    assert found["saliency_lift"].low > 0.5
    assert math.isnan(found["valid_action_error"].mean)  # constant: nothing to correlate


def test_the_report_names_every_claim_in_every_regime_and_where_it_was_measured() -> None:
    text = report(all_lines(seeds=2))
    for claim in CLAIMS:
        assert text.count(f"| {claim.name} | {claim.says} |") == len(study.REGIMES)
    for piece in ("abc", "a processor", "PLAN.md", "prism reproduce study", "validation loss"):
        assert piece in text


def test_the_probe_recovers_a_linear_map_however_many_features_there_are() -> None:
    rng = np.random.default_rng(0)
    for features in (8, 600):
        hidden = rng.normal(size=(500, 4))
        x = hidden @ rng.normal(size=(4, features))
        y = hidden @ rng.normal(size=(4, 2))
        assert ridge_error(x[:300], y[:300], x[300:], y[300:]) < 0.1
        noise = rng.normal(size=(500, features))
        assert ridge_error(noise[:300], y[:300], noise[300:], y[300:]) > 1


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "study"
    out.mkdir()
    lines = all_lines(seeds=2)
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prism("reproduce", "study", "--seeds", "0", "1", "2", "--out", str(out), "--dry-run")
    prism("reproduce", "study", "--report", "--out", str(out))
    assert "## Claim by claim" in (out / "table.md").read_text()
    assert not list(out.glob("runs*"))


def test_a_cell_learns_as_the_plan_says_whatever_nano_becomes() -> None:
    config = Cell(study.REGIMES[0], "prism", 3).config
    train, encoder = config.train, config.policy.encoder
    assert (train.steps, train.batch_size, train.noise_draws, train.lr, train.warmup_steps) == (800, 32, 1, 1e-3, 50)
    assert (train.ema_power, train.ema_max_decay, train.weight_decay, train.precision) == (
        0.75,
        0.9999,
        1e-6,
        "float32",
    )
    assert (config.policy.down_dims, config.policy.step_embed_dim, encoder.width, encoder.num_keypoints) == (
        (32, 64, 128),
        64,
        16,
        32,
    )
    assert (encoder.temperature, encoder.attention_dim, encoder.out_dim) == (0.3, 64, 64)
