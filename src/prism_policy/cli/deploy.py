"""The commands that hand a policy on: serve, push, pull."""

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
from prism_policy.utils.terminal import console, shell


@dataclass(frozen=True)
class Serve(Command):
    """Serve a trained policy over the network, in the protocol of openpi's policy servers.

    A robot's control loop asks it with prism_client.client, which needs neither torch nor a simulator, or with
    openpi's own client. With PRISM_API_KEY set, only clients that send it are admitted. docs/serving.md has the
    messages.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder, or hf:USER/NAME for one on the Hugging Face hub."""
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
        from prism_policy.run_folder import local_run

        files = (self.tls_cert, self.tls_key)
        if len({file == Path() for file in files}) > 1:
            raise PrismError("--tls-cert and --tls-key: expected both or neither, got one")
        tls = None if self.tls_cert == Path() else files
        key = os.environ.get("PRISM_API_KEY")
        folder = local_run(self.folder)
        serve(folder, self.checkpoint, self.host, self.port, self.device, self.seed, key, tls)


@dataclass(frozen=True)
class Push(Command):
    """Send a trained run to the Hugging Face hub, with a model card written from its results.

    Settings, statistics, metrics, results and the weights of one checkpoint go there, as safetensors and JSON; no
    videos and no demonstrations. Log in before with `hf auth login`, or set HF_TOKEN. Next: prism pull USER/NAME.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    repository: Annotated[str, tyro.conf.Positional]
    """USER/NAME; made if it is not there."""
    checkpoint: str = "last"
    """Weights to send: last, best, or the number of updates of a kept checkpoint."""
    private: bool = False
    """Where the repository is made, only its owners see it."""
    card_only: bool = False
    """Print the model card and send nothing."""

    def run(self) -> None:
        """Send it, and print where it lies."""
        from prism_policy.reports.hub import model_card, push

        if self.card_only:
            console.print(*model_card(self.folder, self.repository, self.checkpoint).splitlines())
            return
        console.print(f"Model: {push(self.folder, self.repository, self.checkpoint, self.private)}")
        console.print(f"Next:  {shell('prism', 'serve', f'hf:{self.repository}')}   (on any machine)")


@dataclass(frozen=True)
class Pull(Command):
    """Fetch a run from the Hugging Face hub into a folder of its own: to evaluate, serve or go on with.

    `prism serve hf:USER/NAME` and `load_policy("hf:USER/NAME")` need no pull.
    """

    repository: Annotated[str, tyro.conf.Positional]
    """USER/NAME."""
    out: Path | None = None
    """The new run folder; by default runs/NAME."""

    def run(self) -> None:
        """Fetch it, and print where it lies."""
        from prism_policy.reports.hub import pull

        target = self.out or Path("runs") / self.repository.rpartition("/")[2]
        console.print(f"Run:  {pull(self.repository, target)}")
        console.print(f"Next: {shell('prism', 'evaluate', target)}")
