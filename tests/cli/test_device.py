"""`--device` means what it says for every command that computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prism_policy.cli.main import main
from prism_policy.data.schema import task_schema
from prism_policy.run_folder import make_policy, open_run, save_normalizer, save_weights
from small_run import SETTINGS, small_config, split, write_demos


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations and a run of random weights."""
    folder = tmp_path_factory.mktemp("device")
    config = small_config(f"--dataset {write_demos(folder / 'demos.hdf5')}")
    open_run(folder / "run", config)
    policy = make_policy(config, task_schema(config.task))
    save_normalizer(folder / "run", policy, config.task)
    weights = {name: x for name, x in policy.state_dict().items() if not name.startswith("normalizer.")}
    save_weights(folder / "run", weights)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        f"train --dataset demos.hdf5 --encoder sspool {' '.join(split(SETTINGS))} --out new",
        "quickstart --smoke --out new",
        "evaluate run",
        "saliency run --out new",
        "probe --encoders sspool --out new",
        "info encoders --resolutions 84",
        "serve run",
        "reproduce table1 --smoke --tasks lift --policies ddpm --seeds 0 --cells cells --out table",
    ],
)
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_made(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PRISM_CACHE", str(runs / "cache"))
    monkeypatch.chdir(runs)
    monkeypatch.setattr("sys.argv", ["prism", *command.split(), "--device", "cuda"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "expected a GPU that PyTorch can use, found none; choose --device cpu" in capsys.readouterr().err
    assert not (runs / "new").exists()
    assert not (runs / "cache").exists()
    assert not (runs / "run" / "results").exists()
