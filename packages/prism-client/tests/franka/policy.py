"""A policy server for check.py: the hand moves 1 mm a step to the side from where it is. Prints its address."""

from __future__ import annotations

import numpy as np
from websockets.sync.server import ServerConnection, serve

from prism_client.interface import Interface
from prism_client.msgpack_numpy import pack, unpack
from prism_client.robots.franky import POSE
from prism_client.schema import Schema

INTERFACE = Interface(Schema({"front": (120, 160)}, POSE, POSE, 20.0), 1, 8, (-np.inf,) * 7, (np.inf,) * 7)


def handle(connection: ServerConnection) -> None:
    connection.send(pack({**INTERFACE.metadata(), "weights": "w", "instructions": []}))
    for data in connection:
        state = unpack(data)["state"][-1]
        actions = np.tile(state, (8, 1)).astype(np.float32)
        actions[:, 1] += 0.001 * np.arange(1, 9)
        connection.send(pack({"actions": actions}))


if __name__ == "__main__":
    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()
