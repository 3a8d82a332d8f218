"""Who may know whom (DESIGN.md): rooms stay apart, and what must start fast or small stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prism_policy

ROOT = Path(prism_policy.__file__).parent
ROOMS = ("models", "data", "envs")
SIMULATOR = ("robosuite", "mujoco")
OPENED_BY_ONE = ("huggingface_hub", "libero", "pyarrow", "ray", "rerun", "wandb")


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offenders(files: list[Path], *packages: str) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports(file))
        if any(name == p or name.startswith(f"{p}.") for p in packages)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_never_import_one_another(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert not offenders(files, *(f"prism_policy.{other}" for other in ROOMS if other != room))


@pytest.mark.parametrize("room", [*ROOMS, "policies"])
def test_rooms_never_import_the_verbs_on_top(room: str) -> None:
    verbs = (
        "train",
        "evaluate",
        "results",
        "measure",
        "compare",
        "cells",
        "cluster",
        "experiments",
        "figures",
        "paper_tables",
        "reproduce",
        "scores",
        "table_files",
        "tables",
        "recording",
        "replay",
        "collect",
        "probe",
        "info",
        "demo_info",
        "open_loop",
        "download",
        "saliency",
        "saliency_figures",
        "saliency_study",
        "saliency_tables",
        "attribution",
        "clips",
        "faithfulness",
        "localisation",
        "look",
        "report",
        "quickstart",
        "run_folder",
        "cli",
    )
    assert not offenders(sorted((ROOT / room).rglob("*.py")), *(f"prism_policy.{verb}" for verb in verbs))


def test_only_the_environments_know_the_simulator() -> None:
    elsewhere = [f for f in sorted(ROOT.rglob("*.py")) if f.relative_to(ROOT).parts[0] != "envs"]
    assert not offenders(elsewhere, *SIMULATOR)


@pytest.mark.parametrize("package", OPENED_BY_ONE)
def test_a_heavy_optional_package_has_one_home(package: str) -> None:
    homes = [f.name for f in sorted(ROOT.rglob("*.py")) if offenders([f], package)]
    assert len(homes) <= 1


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["prism_policy", "prism_policy.cli", "prism_policy.config", "prism_policy.presets", "prism_policy.errors"],
)
def test_what_must_start_fast_loads_neither_torch_nor_the_simulator(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", *SIMULATOR}


def test_simulator_workers_load_no_torch() -> None:
    """Each worker would pay hundreds of MiB for it. Indirect imports count, hence a real process."""
    modules = [
        "prism_policy." + ".".join(f.relative_to(ROOT).with_suffix("").parts)
        for f in sorted((ROOT / "envs").rglob("*.py"))
        if f.name != "__init__.py" and not f.name.startswith("libero")  # those have a test where LIBERO is installed
    ]
    assert "torch" not in loaded_by("import " + ", ".join(modules))
