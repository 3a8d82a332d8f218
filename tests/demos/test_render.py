"""What of a foreign file `prism render` copies, and what it leaves out and says so."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

import community
from prism_policy.config.settings import TaskConfig
from prism_policy.demos.render import check_source


def test_what_holds_no_numbers_for_each_step_is_left_out_and_noted(tmp_path: Path) -> None:
    """As MimicGen's `src_demo_inds`."""
    arrays = community.demo(6) | {"src_demo_inds": np.arange(3), "datagen_info/gripper": np.zeros((6, 1))}
    path = community.write_file(tmp_path / "a.hdf5", {"demo_0": arrays}, community.env_args("v1.4"))
    with h5py.File(path, "r+") as file:
        file["data/demo_0/src_name"] = "demo_7"
        file["mask/odd"] = 3
        file.copy("data/demo_0", file["data"], "episode_3")
    source = check_source(path, TaskConfig("lift"))
    assert source.names == ["demo_0"]
    assert source.notes == [
        "left out episode_3: expected names demo_0, demo_1, ...",
        "left out src_demo_inds, src_name, which hold no numbers for each step",
        "mask odd: expected a list of names, got int64 ()",
    ]
