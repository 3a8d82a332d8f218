"""An experiment's tables written down: Markdown, a page of HTML that loads nothing, and CSV for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from prism_policy.paper.tables import MISSING, Results, facts, grids
from prism_policy.reports.html import data_url, render


def markdown(results: Results, picture: str = "figure.png") -> str:
    """The page in Markdown."""
    parts = [f"# {results.experiment.title}", *facts(results), f"![{results.experiment.title}]({picture})"]
    for grid in grids(results):
        rows = [grid.header, ["---"] * len(grid.header), *grid.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        parts += [f"## {grid.title}", table, *([grid.note] if grid.note else [])]
    parts += ["## How the paper was read", "\n".join(f"- {line}" for line in results.experiment.readings)]
    return "\n\n".join(parts) + "\n"


def page(results: Results, picture: bytes) -> str:
    """The page in HTML, which loads nothing."""
    return render(
        "paper/table.html",
        title=results.experiment.title,
        facts=facts(results),
        picture=data_url(picture, "image/png"),
        tables=grids(results),
        readings=results.experiment.readings,
        missing=MISSING,
    )


def entries_csv(results: Results) -> str:
    """A line an entry; what was not measured, or not printed in the paper, is empty."""
    rows: list[dict[str, object]] = []
    for entry in results.experiment.entries:
        score = results.scores[entry.key]
        mean, deviation = score.mean_and_std if score else (None, None)
        low, high = score.interval if score else (None, None)
        rows.append(
            {
                **dict(zip(("block", "row", "column"), entry.key, strict=True)),
                "checkpoint": entry.checkpoint,
                "ours_mean": _percent(mean),
                "ours_std": _percent(deviation),
                "ours_successes": score and score.successes,
                "ours_episodes": score and score.n,
                "ours_wilson_low": _percent(low),
                "ours_wilson_high": _percent(high),
                "ours_seeds": score and " ".join(map(str, score.seeds)),
                "paper_mean": entry.paper,
                "paper_std": entry.paper_std,
                "paper_is_over_more": entry.partial,
                "ours_scale": results.scale,
                "ours_data": results.data,
            }
        )
    return _csv(rows)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 3)


def cells_csv(results: Results) -> str:
    """A line a cell."""
    rows = []
    for (variant, seed), cell in results.cells.items():
        records = cell.records("last", results.n_episodes)
        rows.append(
            {
                "cell": variant.name,
                **{n: getattr(variant, n) for n in ("task", "policy", "encoder", "views", "resolution")},
                "seed": seed,
                "trained": cell.trained,
                "successes": sum(r["success"] for r in records) if records else None,
                "episodes": len(records) if records else None,
                "train_s": cell.seconds("train"),
                "evaluate_s": cell.seconds("evaluate"),
                "folder": str(cell.folder),
            }
        )
    return _csv(rows)


def _csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
