"""Scores against independent sums, and tables that tell ours from the paper's and what is missing from zero."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from browser import CHROMIUM, Page
from made_up_cells import N, measure, outcomes, plan_in, results_of
from prism_policy.paper.reproduce import write_results
from prism_policy.paper.scores import Score, difference, score
from prism_policy.paper.tables import grids


def test_a_score_is_the_mean_over_seeds_with_wilsons_interval_over_all_episodes(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, policies=["flow_matching"])
    for i, cell in enumerate(plan.cells):
        measure(cell, 0.3 + 0.02 * i)
    cells = {(c.variant, c.seed): c for c in plan.cells}
    (entry,) = [e for e in plan.experiment.entries if e.key == ("Standard ResNet18", "AvgPool", "FM")]
    actual = score(entry, cells, plan.seeds, N)
    assert actual is not None
    mine = [[outcomes(c) for c in plan.cells if c.variant in entry.variants and c.seed == s] for s in range(3)]
    rates = [np.mean([np.mean(task) for task in seed]) for seed in mine]
    mean, deviation = actual.mean_and_std
    assert mean == pytest.approx(np.mean(rates))
    assert deviation == pytest.approx(np.std(rates, ddof=1))
    every = np.array(mine).reshape(-1)
    assert (actual.successes, actual.n) == (every.sum(), 90)
    exact = stats.binomtest(int(every.sum()), 90).proportion_ci(method="wilson")
    assert actual.interval == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_a_difference_pairs_the_episodes_of_all_seeds_and_tasks(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, policies=["flow_matching"], seeds=[0, 1])
    for cell in plan.cells:
        measure(cell, 0.8 if cell.variant.encoder == "sspool" else 0.4)
    cells = {(c.variant, c.seed): c for c in plan.cells}
    entries = {e.key: e for e in plan.experiment.entries}
    comparison = next(c for c in plan.experiment.comparisons if c.a == ("Standard ResNet18", "MaxPool", "FM"))
    assert comparison.b == ("Standard ResNet18", "SSPool", "FM")
    actual = difference(comparison, entries, cells, plan.seeds, N)
    assert actual is not None
    a, b = (
        np.array([outcomes(cells[v, s]) for s in (0, 1) for v in entries[key].variants]).reshape(-1)
        for key in (comparison.a, comparison.b)
    )
    assert actual.n == 60
    assert actual.difference == pytest.approx(a.mean() - b.mean())
    discordant = int((a & ~b).sum()), int((~a & b).sum())
    assert (actual.only_a, actual.only_b) == discordant
    assert actual.p_value == pytest.approx(stats.binomtest(discordant[0], sum(discordant)).pvalue)


def test_a_seed_counts_when_all_its_cells_are_there(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, policies=["flow_matching"], seeds=[0, 1])
    (entry,) = [e for e in plan.experiment.entries if e.key == ("Standard ResNet18", "SSPool", "FM")]
    cells = {(c.variant, c.seed): c for c in plan.cells}
    assert score(entry, cells, plan.seeds, N) is None
    wanted = [c for c in plan.cells if c.variant in entry.variants]
    for cell in wanted[:-1]:
        measure(cell, 0.5)
    measure(wanted[-1], 0.5, n=N - 1)  # an evaluation that is not through
    actual = score(entry, cells, plan.seeds, N)
    assert actual is not None
    assert (actual.seeds, actual.n) == ((0,), 3 * N)
    assert actual.mean_and_std[1] is None
    grid = grids(results_of(plan))[0]
    assert f"{100 * actual.mean_and_std[0]:.1f} (1 of 2 seeds)" == grid.rows[0][grid.header.index("FM, ours [%]")]


def test_what_is_missing_is_never_a_number(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, seeds=[0])
    write_results(plan, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert len(rows) == 32
    assert all(row["ours_mean"] == row["ours_wilson_low"] == row["ours_episodes"] == "" for row in rows)
    assert all(float(row["paper_mean"]) > 60 for row in rows)
    for grid in grids(results_of(plan))[:2]:
        for row in grid.rows:
            assert set(row[1::2]) == {"missing"}
    measured = plan.cells[0]
    measure(measured, 0.0)  # none of ten: a zero that was measured
    write_results(plan_in(tmp_path, seeds=[0], tasks=["lift"], policies=["ddpm"]), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    zero = [row for row in rows if row["ours_mean"]]
    assert [(row["ours_mean"], row["ours_successes"], row["ours_episodes"]) for row in zero] == [("0.0", "0", "10")]


def test_ours_and_the_papers_numbers_are_told_apart_everywhere(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table4", seeds=[0])
    for cell in plan.cells:
        measure(cell, 0.6)
    write_results(plan, tmp_path / "out")
    text, html = ((tmp_path / "out" / f"table.{kind}").read_text() for kind in ("md", "html"))
    for page in (text, html):
        assert "Lift, ours [%]" in page
        assert "Lift, paper [%]" in page
        assert "200 scripted demonstrations" in page
        assert page.count("as printed in arXiv:2606.15232") == 3  # under both blocks and the differences
        assert "not ours with the paper's" in unescape(page)
        assert "Diffusion's Base. average 67.1" in unescape(page)
    assert "99.0 ± 1.0" in text
    assert re.search(r"\| Flow Matching, ToolHang: PRISM \| Base. \|.*\| \+9.3 \|", text)
    cells = list(csv.DictReader(io.StringIO((tmp_path / "out" / "cells.csv").read_text())))
    assert len(cells) == 16
    assert sum(int(row["successes"]) for row in cells) == sum(sum(outcomes(c)) for c in plan.cells)


def test_a_failure_is_counted_where_it_happened(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, seeds=[0, 1], tasks=["lift"], policies=["meanflow"])
    for cell in plan.cells:
        measure(cell, 0.5)
    (grid,) = [g for g in grids(results_of(plan)) if g.title == "How far the episodes came: lift"]
    assert grid.header == ["lift", "episodes", "nothing", "reached", "grasped", "lifted (success)"]
    wins = sum(sum(outcomes(c)) for c in plan.cells if c.variant == plan.cells[0].variant)
    assert grid.rows[0] == ["lift-meanflow-sspool", "20", "0", str(20 - wins), "0", str(wins)]


def test_figure_5_counts_the_parameters_at_the_papers_size(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "fig5", seeds=[0])
    (grid,) = [g for g in grids(results_of(plan)) if g.title == "Parameters"]
    added = {row[0]: float(row[3].split()[0]) for row in grid.rows}
    # 28,672 of FiLM for each number of two frames, two cameras; three more stages of 64, 128 and 256.
    assert added["AvgPool"] == added["MaxPool"] == pytest.approx(2 * 28672 * (64 + 128 + 256) / 1e6, abs=0.01)
    maps = 64 * 19**2 + 128 * 10**2 + 256 * 5**2
    assert added["NoPool"] == pytest.approx(2 * 28672 * maps / 1e6, abs=0.01)
    # As the paper says: multiscale SSPool adds the fewest.
    assert added["SSPool"] < added["AvgPool"]


def test_one_seed_has_no_deviation() -> None:
    assert Score((0,), (0.5,), 5, 10).mean_and_std == (0.5, None)
    assert math.isclose(statistics.stdev([0.4, 0.6]), Score((0, 1), (0.4, 0.6), 10, 20).mean_and_std[1] or 0)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_from_disk_and_loads_nothing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "fig4")
    for cell in plan.cells[:6]:
        measure(cell, 0.3)
        measure(cell, 0.5, "best")
    path = write_results(plan, tmp_path / "out")
    width, height = Image.open(tmp_path / "out" / "figure.png").size
    assert width > 800
    assert height > 400
    with Page(path.as_uri()) as page:
        assert not page.complaints()
        assert all(address.startswith(("file:", "data:")) for address in page.requests())
        assert page.evaluate("document.querySelector('img').naturalWidth") == width
        assert page.evaluate("document.querySelectorAll('td.paper').length") > 5
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
