"""A run goes to the hub and comes back acting as before, against a small server that speaks the hub's protocol."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

constants = pytest.importorskip("huggingface_hub.constants", reason="needs prism-policy[hub]")

from hub_server import Hub, serving  # noqa: E402
from prism_policy.errors import PrismError  # noqa: E402
from prism_policy.reports.hub import model_card, pull, push  # noqa: E402
from prism_policy.run_folder import load_policy, read_run  # noqa: E402
from served_run import stacked, write_run  # noqa: E402
from small_run import small_config  # noqa: E402

NAME, TOKEN = "somebody/lift", "hf_secret"
RATE = {"success_rate": 0.75, "n_episodes": 4, "n_success": 3, "wilson_95": [0.3, 0.95]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", replace(small_config(), dataset="/home/me/secret/cubes.hdf5"))
    whole = {**RATE, "mean_over_seeds": 0.75, "std_over_seeds": None, "seeds": {"3": RATE}}
    for place in ("results/last/evaluate-s3/states", "videos/last", "checkpoints"):
        (folder / place).mkdir(parents=True)
    (folder / "results/summary.json").write_text(json.dumps({**RATE, "checkpoints": {"last": whole}}))
    (folder / "results/last/evaluate-s3/states/episode_000.npy").write_bytes(b"large")
    (folder / "report.html").write_text("/home/me/secret")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    with serving(TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers are others
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
        yield server


def chunk(policy: object) -> torch.Tensor:
    question = {
        "images": {c: x[None] for c, x in stacked(0, 1)["images"].items()},
        "state": stacked(0, 1)["state"][None],
    }
    return policy.act(question, torch.Generator().manual_seed(0))  # type: ignore[attr-defined, no-any-return]


def test_a_run_comes_back_acting_as_before(hub: Hub, run: Path, tmp_path: Path) -> None:
    assert push(run, NAME, private=True) == f"{hub.url}/{NAME}"
    assert hub.private == {f"models/{NAME}"}
    files = hub.repositories[f"models/{NAME}"]
    assert set(files) == {
        "README.md",
        "config.json",
        "normalizer.safetensors",
        "weights.safetensors",
        "results/summary.json",
    }
    assert not any(b"secret" in content or TOKEN.encode() in content for content in files.values())
    expected = chunk(load_policy(run))
    assert torch.equal(chunk(load_policy(f"hf:{NAME}")), expected)
    target = pull(NAME, tmp_path / "runs" / "pulled")
    assert torch.equal(chunk(load_policy(target)), expected)
    assert replace(read_run(target), dataset="") == replace(read_run(run), dataset="")
    assert [path.name for path in target.parent.iterdir()] == ["pulled"]
    with pytest.raises(PrismError, match="exists; choose another --out"):
        pull(NAME, target)


def test_without_the_hub_what_was_fetched_is_taken(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, NAME)
    load_policy(f"hf:{NAME}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # "discard": nobody listens
    assert torch.equal(chunk(load_policy(f"hf:{NAME}")), chunk(load_policy(run)))
    with pytest.raises(PrismError, match="the Hugging Face hub did not give hf:somebody/else"):
        load_policy("hf:somebody/else")


def test_who_may_not_write_is_told_without_the_token(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PrismError, match=r"did not take somebody/lift .*log in with `hf auth login`") as refused:
        push(run, NAME)
    assert "hf_wrong" not in str(refused.value)
    assert not hub.repositories


def test_what_is_no_run_is_refused(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.repositories[f"models/{NAME}"] = {"model.safetensors": b"?", "README.md": b"# another model"}
    with pytest.raises(PrismError, match=r"config\.json"):
        pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    with pytest.raises(PrismError, match="there is no such repository, or you may not see it"):
        pull("somebody/else", tmp_path / "pulled")
    os.truncate(run / "weights.safetensors", 100)
    with pytest.raises(PrismError, match=r"weights\.safetensors"):
        push(run, NAME)
    assert hub.commits == []


def test_the_card_says_what_was_measured(run: Path) -> None:
    card = model_card(run, NAME)
    assert "**3 of 4 episodes in simulation succeed: 75%, 95% interval 30% to 95%**" in card
    assert "seed 3" in card
    assert "`cubes.hdf5`" in card
    assert "| camera `agentview` | uint8, 32 x 32 px, RGB |" in card
    (run / "results/summary.json").unlink()
    assert "Nothing was measured of checkpoint `last`." in model_card(run, NAME)
