"""The command `prism serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from prism_policy.cli.command import Command
from prism_policy.config.ranges import Range, Seed
from prism_policy.config.settings import Device
from prism_policy.errors import PrismError


@dataclass(frozen=True)
class Serve(Command):
    """Serve a trained policy over the network, in the protocol of openpi's policy servers.

    A robot's control loop asks it with prism_client.client, which needs neither torch nor a simulator, or with
    openpi's own client. With PRISM_API_KEY set, only clients that send it are admitted. docs/serving.md has the
    messages.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    checkpoint: str = "last"
    """Weights to serve: last, best, or the number of updates of a kept checkpoint."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 admits other machines."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port to listen at; 0 is any that is free."""
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    seed: Seed = 0
    """Seed of the policy's noise."""
    tls_cert: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path()
    """Certificate (PEM) for wss://, with those that signed it; needs --tls-key."""
    tls_key: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path()
    """Its key (PEM), without a password."""

    def run(self) -> None:
        """Serve until it is stopped."""
        from prism_policy.deploy.server import serve

        files = (self.tls_cert, self.tls_key)
        if len({file == Path() for file in files}) > 1:
            raise PrismError("--tls-cert and --tls-key: expected both or neither, got one")
        tls = None if self.tls_cert == Path() else files
        key = os.environ.get("PRISM_API_KEY")
        serve(self.folder, self.checkpoint, self.host, self.port, self.device, self.seed, key, tls)
