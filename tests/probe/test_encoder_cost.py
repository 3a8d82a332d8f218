"""What `prism info encoders` says, against the sizes of the literature and a count by hand."""

import json
import subprocess

import pytest
import torch

import commandline
from prism_policy.config import presets
from prism_policy.errors import PrismError
from prism_policy.probe.encoder_cost import EncoderCost, encoder_costs, encoder_table
from prism_policy.utils.progress import console

FILM_PER_NUMBER = 28_672
"""Parameters of the U-Net's FiLM layers for each number a camera, at two frames."""


def costs(*names: str, resolution: int = 84, width: int = 64, rounds: int = 0) -> dict[str, EncoderCost]:
    encoders = {name: presets.encoder(name) for name in names}
    return {row.encoder: row for row in encoder_costs(encoders, (resolution,), width, rounds=rounds)}


@pytest.fixture(scope="module")
def full() -> dict[tuple[str, int], EncoderCost]:
    """Every preset at full width, counted and not timed."""
    return {(row.encoder, row.resolution): row for row in encoder_costs(rounds=0)}


def resnet18_operations(sizes: tuple[int, int, int, int, int]) -> int:
    """Two operations for each multiply-add of ResNet-18's convolutions; sizes of conv1's and the stages' outputs."""

    def conv(kernel: int, c_in: int, c_out: int, size: int) -> int:
        return 2 * kernel**2 * c_in * c_out * size**2

    total = conv(7, 3, 64, sizes[0]) + 4 * conv(3, 64, 64, sizes[1])
    for stage in (2, 3, 4):
        c, size = 32 * 2**stage, sizes[stage]
        total += conv(3, c // 2, c, size) + 3 * conv(3, c, c, size) + conv(1, c // 2, c, size)
    return total


def test_rows_cover_every_preset_at_every_resolution(full: dict[tuple[str, int], EncoderCost]) -> None:
    assert list(full) == [(name, resolution) for resolution in (84, 240) for name in presets.ENCODERS]
    assert all(row.forward_ms is None for row in full.values())


def test_sspool_has_the_sizes_of_the_paper(full: dict[tuple[str, int], EncoderCost]) -> None:
    for resolution in (84, 240):
        row = full["sspool", resolution]
        assert row.numbers == 64
        assert row.encoder_parameters == 11_192_928
        assert round(row.policy_parameters / 1e6, 2) == 76.28
        assert row.policy_growth == 0


def test_numbers_a_camera_are_those_of_the_feature_maps(full: dict[tuple[str, int], EncoderCost]) -> None:
    maps = {84: (19, 10, 5, 3), 240: (54, 27, 14, 7)}
    for resolution, sizes in maps.items():
        values = [c * s**2 for c, s in zip((64, 128, 256, 512), sizes, strict=True)]
        assert full["avgpool", resolution].numbers == full["maxpool", resolution].numbers == 512
        assert full["ms_avgpool", resolution].numbers == 960
        assert full["nopool", resolution].numbers == values[-1]
        assert full["ms_nopool", resolution].numbers == sum(values)
        assert full["ms_sspool", resolution].numbers == 384


def test_a_policy_grows_by_its_encoder_and_by_film(full: dict[tuple[str, int], EncoderCost]) -> None:
    """Up to ten billion parameters, which no memory here holds."""
    baseline = full["sspool", 84]
    for row in full.values():
        more = row.encoder_parameters - baseline.encoder_parameters + FILM_PER_NUMBER * (row.numbers - baseline.numbers)
        assert row.policy_parameters == baseline.policy_parameters + more
        assert row.policy_growth == pytest.approx(more / baseline.policy_parameters)
    assert full["ms_nopool", 240].policy_parameters > 10**10


def test_operations_are_those_of_the_convolutions_counted_by_hand(full: dict[tuple[str, int], EncoderCost]) -> None:
    keypoints = 2 * 512 * 32 * 9 + 2 * 32 * 9 * 2  # the 1x1 convolution, then the mean over the grid of 3 by 3
    assert full["avgpool", 84].operations == resnet18_operations((38, 19, 10, 5, 3))
    assert full["sspool", 84].operations == resnet18_operations((38, 19, 10, 5, 3)) + keypoints
    assert full["avgpool", 240].operations == resnet18_operations((108, 54, 27, 14, 7))


def test_operations_are_an_images_and_the_time_is_a_batchs() -> None:
    encoders = {"sspool": presets.encoder("sspool")}
    (one,) = encoder_costs(encoders, (84,), 16, rounds=1)
    (four,) = encoder_costs(encoders, (84,), 16, batch_size=4, rounds=1)
    assert one.operations == four.operations
    assert one.forward_ms is not None
    assert four.forward_ms is not None
    assert min(one.forward_ms, four.forward_ms) > 0


def test_counting_leaves_torch_as_it_was() -> None:
    costs("sspool", width=16, rounds=1)
    assert torch.zeros(1).device.type == "cpu"
    assert torch.is_grad_enabled()


def test_what_is_too_large_to_time_is_counted_all_the_same() -> None:
    row = costs("nopool", width=8192, rounds=1)["nopool"]
    assert row.forward_ms is None
    assert row.encoder_parameters > 10**11
    with console.capture() as capture:
        console.print(encoder_table([row]))
    assert "too large" in capture.get()


@pytest.mark.parametrize(
    ("resolutions", "width", "batch_size", "sentence"),
    [
        ((84,), 50, 1, "width: expected channels that divide into GroupNorm's groups of 16, got 50"),
        ((84,), 0, 1, "width: expected at least 1, got 0"),
        ((84, 20), 16, 1, "an image of 18x18 after the crop leaves a last feature map of 1x1"),
        ((-84,), 16, 1, "expected images of which a crop of 0.9 leaves a pixel"),
        ((), 16, 1, "resolutions: expected at least one, got none"),
        ((84,), 16, 0, "batch_size: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_timed(
    resolutions: tuple[int, ...], width: int, batch_size: int, sentence: str
) -> None:
    rows: list[EncoderCost] = []
    with pytest.raises(PrismError, match=sentence):
        encoder_costs({"avgpool": presets.encoder("avgpool")}, resolutions, width, batch_size, on_row=rows.append)
    assert not rows


def prism(*arguments: str) -> subprocess.CompletedProcess[str]:
    return commandline.prism(*arguments)


def test_command_prints_json_and_nothing_else() -> None:
    done = prism("info", "encoders", "--resolutions", "84", "--width", "16", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["device"]
    assert [row["encoder"] for row in printed["encoders"]] == list(presets.ENCODERS)
    sspool = printed["encoders"][list(presets.ENCODERS).index("sspool")]
    assert (sspool["numbers"], sspool["policy_growth"]) == (64, 0)
    assert all(row["forward_ms"] > 0 for row in printed["encoders"])


def test_command_prints_a_table_that_fits_a_terminal() -> None:
    done = prism("info", "encoders", "--resolutions", "84", "240", "--width", "16", "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in presets.ENCODERS:
        rows = [line for line in lines if line.split()[:1] == [name]]
        assert [line.split()[1] for line in rows] == ["84", "240"]
        assert all(len(line) <= 80 for line in rows)
    assert "a multiply-add counts as 2" in done.stdout
    assert lines[-1].startswith("Next: prism ")


@pytest.mark.parametrize("bad", [("--width", "50"), ("--resolutions", "20"), ("--threads", "0")])
def test_bad_input_ends_the_command_with_one_sentence(bad: tuple[str, str]) -> None:
    done = prism("info", "encoders", *bad)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("prism: ")
    assert "expected" in line or "use larger images" in line


def test_every_design_of_prism_fits_what_the_paper_states() -> None:
    """384 numbers before the fusion, +15.4% parameters within 0.2; and the preset is one of them."""
    designs = presets.prism_designs()
    for cost in encoder_costs(designs, (84,), rounds=0):
        assert cost.policy_growth == pytest.approx(0.154, abs=0.002), cost.encoder
    for config in designs.values():
        assert config.num_keypoints is not None
        assert 2 * config.num_keypoints * len(config.stages_read) == 384
    assert presets.encoder("prism") in designs.values()
