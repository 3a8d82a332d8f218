"""Trunks that begin with weights from elsewhere: torchvision's features, in every depth and norm."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import serving
from prism_policy.config import presets
from prism_policy.config.encoder import EncoderConfig
from prism_policy.errors import PrismError
from prism_policy.models.encoder import CameraEncoder, VisualEncoder
from prism_policy.models.pretrained import pretrained_weights
from prism_policy.models.resnet import ResNet
from prism_policy.training.trainer import Trainer
from small_run import prism_train, small_config, small_windows, write_demos

ELSEWHERE = os.environ.get("PRISM_LEROBOT_PYTHON", "")
TORCHVISION = """
import sys, torch, torchvision
from safetensors.torch import save_file
depth, out = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = getattr(torchvision.models, f"resnet{depth}")()
for name, x in model.named_buffers():
    if "running" in name: x.copy_(torch.rand_like(x) + 0.5)
model.eval()
x = torch.randn(2, 3, 76, 90)
y, maps = model.maxpool(model.relu(model.bn1(model.conv1(x)))), {}
for i in range(1, 5):
    y = getattr(model, f"layer{i}")(y)
    maps[f"map{i}"] = y.detach().contiguous()
save_file(dict(model.state_dict()), f"{out}/weights.safetensors")
save_file({"x": x, **maps}, f"{out}/maps.safetensors")
"""


@pytest.mark.slow
@pytest.mark.skipif(not ELSEWHERE, reason="needs PRISM_LEROBOT_PYTHON, whose environment has torchvision")
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_feature_maps_are_torchvisions(tmp_path: Path, depth: int) -> None:
    subprocess.run([ELSEWHERE, "-c", TORCHVISION, str(depth), str(tmp_path)], check=True, timeout=300)
    expected = load_file(tmp_path / "maps.safetensors")
    for norm in ("batch", "frozen_batch"):
        trunk = ResNet(depth, norm=norm)  # type: ignore[arg-type]
        assert trunk.load_imagenet(load_file(tmp_path / "weights.safetensors")) == []
        trunk.train(norm == "frozen_batch")  # in training too
        for i, actual in enumerate(trunk(expected["x"]), start=1):
            torch.testing.assert_close(actual, expected[f"map{i}"], atol=1e-4, rtol=1e-4)


def write_trunk(path: Path, width: int = 16, depth: int = 18, seed: int = 7) -> Path:
    """Random weights of a BatchNorm trunk, as a published file has them."""
    torch.manual_seed(seed)
    trunk = ResNet(depth, width, "batch")
    save_file(
        {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in trunk.state_dict().items()}, path
    )
    return path


def trunk_of(encoder: VisualEncoder) -> ResNet:
    camera = encoder.encoders["front"]
    assert isinstance(camera, CameraEncoder)
    return camera.trunk


def narrow(path: Path | str, **changes: object) -> EncoderConfig:
    return replace(presets.encoder("sspool"), **{"width": 16, "pretrained": str(path), **changes})  # type: ignore[arg-type]


def test_frozen_norms_have_no_parameters_and_stay(tmp_path: Path) -> None:
    path = write_trunk(tmp_path / "trunk.safetensors")
    encoder = VisualEncoder(narrow(path, norm="frozen_batch"), {"front": (64, 64)}).train()
    encoder.load_pretrained()
    trunk = trunk_of(encoder)
    before = {name: x.clone() for name, x in trunk.named_buffers()}
    assert len(before) == 4 * 20
    assert not any("bn" in name or "downsample.1" in name for name, _ in trunk.named_parameters())
    encoder({"front": torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)}).sum().backward()
    assert all(torch.equal(x, before[name]) for name, x in trunk.named_buffers())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pretrained": "imagnet"}, "pretrained: expected 'imagenet' or a safetensors file, got 'imagnet'"),
        ({"pretrained": "", "norm": "frozen_batch"}, "norm 'frozen_batch' keeps what was learned elsewhere"),
        ({"pretrained": "imagenet"}, "pretrained 'imagenet' is of width 64, got 16; set width 64"),
        ({"width": 32}, "these weights do not fit the trunk: 'bn1.weight' expected|these weights do not fit the trunk"),
        ({"depth": 34}, "these weights do not fit the trunk"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    path = write_trunk(tmp_path / "trunk.safetensors")
    with pytest.raises(PrismError, match=sentence):
        VisualEncoder(replace(narrow(path), **changes), {"front": (64, 64)}).load_pretrained()  # type: ignore[arg-type]


def test_a_run_begins_with_them_and_goes_on_without_the_file(tmp_path: Path) -> None:
    path, windows = write_trunk(tmp_path / "trunk.safetensors"), small_windows(tmp_path)
    config = small_config(f"--policy.encoder.pretrained {path}", "--train.lr 1e-12", "--train.weight-decay 0")
    policy = Trainer(tmp_path / "run", config, windows).train()
    state, given = policy.state_dict(), load_file(path)
    for name in ("conv1.weight", "layer2.1.conv2.weight"):
        torch.testing.assert_close(state[f"encoder.encoders.agentview.trunk.{name}"], given[name], atol=1e-6, rtol=1e-6)
    # Killed and resumed where the file is gone, it ends with the same weights.
    with pytest.raises(PrismError, match="its time is over"):
        Trainer(tmp_path / "killed", config, windows, max_s=0).train()
    path.unlink()
    assert Trainer(tmp_path / "killed", config, windows).train().fingerprint() == policy.fingerprint()


def test_the_command_refuses_before_anything_is_made(tmp_path: Path) -> None:
    write_demos(tmp_path / "demos.hdf5")
    missing = f"--policy.encoder.pretrained {tmp_path / 'none.safetensors'}"
    complaint = prism_train(tmp_path, "--out", tmp_path / "run", settings=(missing,), code=2)
    assert "pretrained: expected 'imagenet' or a safetensors file" in complaint
    assert not (tmp_path / "run").exists()


def test_imagenets_weights_come_from_the_hub_once_or_are_put_there_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs prism-policy[hub]")
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    config, where = narrow("imagenet", width=64), tmp_path / "cache/pretrained/resnet18.tv_in1k.safetensors"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # "discard": nobody listens
    with pytest.raises(PrismError, match=rf"get \S+ by hand, put it at {where}"):
        pretrained_weights(config)
    with serving() as hub:
        content = write_trunk(tmp_path / "published.safetensors", 64).read_bytes()
        hub.repositories["models/timm/resnet18.tv_in1k"] = {"model.safetensors": content}
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        encoder = VisualEncoder(config, {"front": (64, 64)})
        for _ in range(2):
            encoder.load_pretrained()
        assert hub.fetched == ["model.safetensors"]
    assert where.read_bytes() == content
    assert torch.equal(trunk_of(encoder).conv1.weight, load_file(where)["conv1.weight"])
