"""PRISM in other libraries, each the real one: an environment that has them is named by PRISM_ELSEWHERE_PYTHON.

PRISM_ELSEWHERE_PATH is put before its PYTHONPATH, such as a checkout of diffusion_policy. LEROBOT_DATA is a LeRobot
dataset, ROBOMIMIC_DATA an HDF5 file, both of Lift with two cameras.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("PRISM_ELSEWHERE_PYTHON", "")
DATA = {"lerobot": os.environ.get("LEROBOT_DATA", ""), "robomimic": os.environ.get("ROBOMIMIC_DATA", "")}
COMPARE = {
    "lerobot_diffusion.py": """
encoder = policy.diffusion.rgb_encoder[0]
theirs = lambda x: encoder(x / 255)
ours = encoder.visual
""",
    "robomimic_bc.py": """
core = model.nets["policy"].nets["encoder"].nets["obs"].obs_nets["agentview_image"]
theirs = lambda x: core(torch.as_tensor(obs_utils.process_obs(x.permute(0, 2, 3, 1).numpy(), obs_modality="rgb")))
ours = core.nets.visual
""",
    "diffusion_policy_unet.py": """
theirs = lambda x: policy.obs_encoder.eval().key_model_map["agentview_image"](
    policy.normalizer["agentview_image"].normalize(x / 255))
ours = policy.obs_encoder.key_model_map["agentview_image"].visual
""",
}
DRIVER = """
import runpy, sys
script, code = sys.argv[1:3]
sys.argv = [script, *sys.argv[3:]]
import torch
torch.manual_seed(0)
names = runpy.run_path(script)
exec(code, names)
images = torch.randint(0, 256, (3, 84, 84, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ours, theirs = names["ours"].eval(), names["theirs"]
for module in (v for v in names.values() if isinstance(v, torch.nn.Module)): module.eval()
with torch.no_grad():
    difference = (ours({"rgb": images}) - theirs(images.permute(0, 3, 1, 2).float())).abs().max()
print("difference", float(difference))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="needs PRISM_ELSEWHERE_PYTHON, whose environment has the other libraries")
@pytest.mark.parametrize(
    ("script", "data"),
    [("lerobot_diffusion.py", "lerobot"), ("robomimic_bc.py", "robomimic"), ("diffusion_policy_unet.py", "")],
)
def test_it_trains_there_and_gives_what_it_gives_here(script: str, data: str) -> None:
    paths = [str(ROOT / "src"), str(ROOT / "packages/prism-client/src"), os.environ.get("PRISM_ELSEWHERE_PATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    arguments = [str(ROOT / "examples" / "elsewhere" / script), COMPARE[script], *filter(None, [DATA.get(data)]), "20"]
    done = subprocess.run(
        [PYTHON, "-c", DRIVER, *arguments], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("loss ")]
    assert len(lines) == 20
    assert sum(map(float, lines[-5:])) < sum(map(float, lines[:5]))
    (difference,) = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("difference ")]
    assert float(difference) < 1e-5


def test_each_example_has_at_most_40_lines() -> None:
    for script in COMPARE:
        assert len((ROOT / "examples" / "elsewhere" / script).read_text().splitlines()) <= 40
