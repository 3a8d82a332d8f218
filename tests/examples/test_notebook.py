"""The notebook is stored without outputs, and runs from its first cell to its last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

BOOK = Path(__file__).parents[2] / "examples/tour.ipynb"


def test_the_notebook_holds_no_outputs_and_installs_first() -> None:
    cells = json.loads(BOOK.read_text())["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
    assert "%pip install" in "".join(codes[0]["source"])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient", reason="needs prism-policy[docs]")
    pytest.importorskip("ipykernel")
    pytest.importorskip("robosuite")
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PRISM_TOUR", "quick")
    book = nbformat.read(BOOK, as_version=4)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs/tour/report.html").exists()
    shown = [output.get("data", {}) for cell in book.cells for output in cell.get("outputs", ())]
    assert any("95% interval" in data.get("text/plain", "") for data in shown)  # what rich prints
    assert len([data for data in shown if "image/png" in data]) == 3
