"""An experiment's tables written down: Markdown, a page of HTML that loads nothing, and CSV for other programs."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from prism_policy import __version__
from prism_policy.paper.experiments import Variant
from prism_policy.paper.tables import MISSING, Grid, Results, facts, grids

_CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    style = files("prism_policy.reports").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(results.experiment.title)
    image = base64.b64encode(picture).decode()
    body = [f"<header><h1>{title}</h1></header>", *(f"<p>{escape(fact)}</p>" for fact in facts(results))]
    body.append(f'<figure class="picture"><img alt="{title}" src="data:image/png;base64,{image}"></figure>')
    for grid in grids(results):
        body.append(f"<section><h2>{escape(grid.title)}</h2>{_html_table(grid)}")
        body.append(f'<p class="soft">{escape(grid.note)}</p></section>')
    readings = "".join(f"<li>{escape(line)}</li>" for line in results.experiment.readings)
    body.append(f"<section><h2>How the paper was read</h2><ul>{readings}</ul></section>")
    body.append(f"<footer>Written by prism-policy {__version__}.</footer>")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">
<title>{title}</title>
<style>
{style}
.wide {{ overflow-x: auto; }}
.wide table {{ font-size: .85rem; }}
.wide th, .wide td {{ padding-right: .8rem; }}
.paper {{ color: var(--soft); font-style: italic; border-right: 1px solid var(--line); padding-right: .75rem; }}
.paper + * {{ padding-left: .75rem; }}
</style>
</head>
<body>
<main>
{"".join(body)}
</main>
</body>
</html>
"""


def _html_table(grid: Grid) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        def kind(i: int, text: str) -> str:
            return ' class="paper"' if i in grid.paper else ' class="missing"' if text == MISSING else ""

        return (
            "<tr>"
            + "".join(f"<{tag}{kind(i, c)}>{_unbroken(escape(c))}</{tag}>" for i, c in enumerate(cells))
            + "</tr>"
        )

    body = "".join(row(cells, "td") for cells in grid.rows)
    return f'<div class="wide"><table>{row(grid.header, "th")}{body}</table></div>'


def _unbroken(text: str) -> str:
    """Figures that belong together stay on one line."""
    return text.replace(" ± ", "&nbsp;±&nbsp;").replace(" to ", "&nbsp;to&nbsp;").replace(" of ", "&nbsp;of&nbsp;")


def entries_csv(results: Results) -> str:
    """A line an entry; what was not measured, or not printed in the paper, is empty."""
    rows = []
    for entry in results.experiment.entries:
        found = results.scores[entry.key]
        mine = {}
        if found is not None:
            mean, deviation = found.mean_and_std
            low, high = found.interval
            mine = {
                "ours_mean": round(100 * mean, 3),
                "ours_std": None if deviation is None else round(100 * deviation, 3),
                "ours_successes": found.successes,
                "ours_episodes": found.n,
                "ours_wilson_low": round(100 * low, 3),
                "ours_wilson_high": round(100 * high, 3),
                "ours_seeds": " ".join(map(str, found.seeds)),
            }
        rows.append(
            {**dict(zip(("block", "row", "column"), entry.key, strict=True)), "checkpoint": entry.checkpoint}
            | dict.fromkeys(_OURS) | mine
            | {"paper_mean": entry.paper, "paper_std": entry.paper_std, "paper_is_over_more": entry.partial}
            | {"ours_scale": results.scale, "ours_data": results.data}
        )  # fmt: skip
    return _csv(rows)


_OURS = (
    "ours_mean",
    "ours_std",
    "ours_successes",
    "ours_episodes",
    "ours_wilson_low",
    "ours_wilson_high",
    "ours_seeds",
)


def cells_csv(results: Results) -> str:
    """A line a cell."""
    rows = []
    for (variant, seed), cell in results.cells.items():
        found = cell.records("last", results.n_episodes)
        rows.append(
            {
                **_columns(variant),
                "seed": seed,
                "trained": cell.trained,
                "successes": sum(r["success"] for r in found) if found else None,
                "episodes": len(found) if found else None,
                "train_s": cell.seconds("train"),
                "evaluate_s": cell.seconds("evaluate"),
                "folder": str(cell.folder),
            }
        )
    return _csv(rows)


def _columns(variant: Variant) -> dict[str, object]:
    return {
        "cell": variant.name,
        "task": variant.task,
        "policy": variant.policy,
        "encoder": variant.encoder,
        "views": variant.views,
        "resolution": variant.resolution,
    }


def _csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
