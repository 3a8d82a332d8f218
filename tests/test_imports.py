"""Who may know whom (CONTRIBUTING.md): rooms stay apart, and what must start fast or small stays light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import prism_client
import prism_policy

ROOT = Path(prism_policy.__file__).parent
FLOORS: tuple[set[str], ...] = (
    {"errors"},
    {"utils"},
    {"tasks"},
    {"config"},
    {"models", "data", "envs"},
    {"policies"},
    {"run_folder", "demos"},
    {"evaluation", "deploy"},
    {"training", "saliency", "probe"},
    {"reports"},
    {"robots"},
    {"paper", "doctor"},
    {"cli"},
)
"""The rooms, lowest first: each imports from lower floors only. Those of one floor never import one another."""
DOORS = {"", "__init__", "__main__"}
"""Of the package itself: what users import, and `python -m prism_policy`."""
SIMULATOR = ("robosuite", "mujoco")
ONE_HOME = ("huggingface_hub", "libero", "pyarrow", "ray", "rerun", "wandb", "jinja2")
"""Optional or special packages that one file imports, if any."""

FILES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, in functions and under TYPE_CHECKING too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(*packages: str) -> list[str]:
    """Modules that import one of the packages."""
    inside = [(module, name) for module, path in FILES.items() for name in imports(path)]
    return sorted({m for m, name in inside if any(name == p or name.startswith(f"{p}.") for p in packages)})


def modules_imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, `policies.base` for `from prism_policy.policies.base import ...`."""
    actual = set()
    for name in imports(path):
        if name.startswith("prism_policy."):
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in FILES and ".".join([*parts, "__init__"]) not in FILES:
                parts.pop()
            dotted = ".".join(parts)
            actual.add(dotted if dotted in FILES else f"{dotted}.__init__".removeprefix("."))
    return actual


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in FILES} - DOORS == set().union(*FLOORS)


def test_rooms_import_from_lower_floors_only() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in FILES.items()
        for other in sorted(modules_imported(path))
        if room(module) not in DOORS
        and room(other) != room(module)
        and (room(other) in DOORS - {"__init__"} or (room(other) != "__init__" and floor(other) >= floor(module)))
    ]
    assert not wrong, "\n".join(wrong)
    assert any(modules_imported(path) for path in FILES.values())


def test_no_circle_among_modules() -> None:
    arrows = {m: modules_imported(path) - {"__init__", m} for m, path in FILES.items() if m not in DOORS}
    assert sum(map(len, arrows.values())) > len(FILES)
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_room_has_at_most_a_dozen_files_and_none_is_long() -> None:
    folders = {path.parent for path in FILES.values()}
    assert len(folders) > 10
    crowded = [f.name for f in folders if len([p for p in f.glob("*.py") if p.name != "__init__.py"]) > 12]
    assert not crowded
    long = [f"{module}: {n} lines" for module, path in FILES.items() if (n := len(path.read_text().splitlines())) > 400]
    assert not long, "\n".join(long)


def test_no_function_is_longer_than_80_lines() -> None:
    functions = [
        (module, node)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 500
    lengths = [(f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1) for module, node in functions]
    long = [f"{name}: {n} lines" for name, n in lengths if n > 80]
    assert not long, "\n".join(long)


def test_only_the_environments_know_the_simulator() -> None:
    assert {room(module) for module in importers(*SIMULATOR)} == {"envs"}


def test_tasks_and_environments_know_no_torch() -> None:
    assert "training" in {room(module) for module in importers("torch")}
    assert not {room(module) for module in importers("torch")} & {"tasks", "envs", "config"}


@pytest.mark.parametrize("package", ONE_HOME)
def test_an_optional_package_has_one_home(package: str) -> None:
    assert len(importers(package)) == 1


CLIENT = Path(prism_client.__file__).parent
CLIENT_FILES = sorted(CLIENT.rglob("*.py"))


def test_the_robots_side_needs_numpy_msgpack_and_websockets_alone_and_python_3_8() -> None:
    allowed = {*sys.stdlib_module_names, "prism_client", "numpy", "msgpack", "websockets"}
    assert len(CLIENT_FILES) > 15
    for path in CLIENT_FILES:
        assert {name.partition(".")[0] for name in imports(path)} <= allowed, path
        ast.parse(path.read_text(), feature_version=(3, 8))


def test_the_robots_side_is_no_longer_a_file_or_a_function_than_the_rest() -> None:
    for path in CLIENT_FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"
    assert max(len(list(folder.glob("*.py"))) for folder in {path.parent for path in CLIENT_FILES}) <= 13


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["prism_policy", "prism_policy.cli.main", "prism_policy.config.presets"])
def test_what_must_start_fast_loads_neither_torch_nor_the_simulator(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "scipy", "matplotlib", *SIMULATOR}


def test_simulator_workers_load_no_torch() -> None:
    """Each worker would pay hundreds of MiB for it. Indirect imports count, hence a real process."""
    modules = [  # LIBERO's have a test where it is installed
        f"prism_policy.{m}" for m in FILES if room(m) == "envs" and "libero" not in m and not m.endswith("__init__")
    ]
    assert len(modules) > 10
    assert "torch" not in loaded_by("import " + ", ".join(modules))
