"""franky-sim, a Franka that speaks libfranka's protocol over MuJoCo, with two cubes: `server.py FOLDER`.

Prints the arm's address. FOLDER gets the scene (scene.xml) and where everything is now (state.bin: simulated time [s],
then the joints), from which cameras are drawn elsewhere: drawing here would keep the arm from its thousand steps a
second.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from franky_sim import SimulationServer
from franky_sim.mujoco_simulator import MujocoSimulator


def main(folder: Path) -> None:
    with MujocoSimulator() as sim:
        for name, place, colour in (("cubeA", "0.5 -0.1 0.02", "1 0 0 1"), ("cubeB", "0.5 0.1 0.025", "0 1 0 1")):
            body = ET.SubElement(sim.worldbody, "body", name=name, pos=place)
            ET.SubElement(body, "freejoint")
            ET.SubElement(body, "geom", type="box", size="0.02 0.02 0.02", rgba=colour, mass="0.05")
        ET.SubElement(sim.worldbody, "camera", name="front", pos="1.4 0 0.7", xyaxes="0 1 0 -0.45 0 0.9")
        robot = sim.add_robot()
        with SimulationServer(sim) as server:
            (folder / "scene.xml").write_bytes(ET.tostring(sim.scene))
            now = np.memmap(folder / "state.bin", np.float64, "w+", shape=(1 + sim.model.nq,))
            now[1:] = sim.data.qpos
            print(robot.hostname, flush=True)
            while True:
                server.run_once()
                now[0], now[1:] = sim.data.time, sim.data.qpos


if __name__ == "__main__":
    main(Path(sys.argv[1]))
