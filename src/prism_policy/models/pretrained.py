"""Weights that a trunk begins with: ImageNet's from the Hugging Face hub, or a file."""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from prism_policy.config.encoder import EncoderConfig
from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.hub import fetch_file
from prism_policy.utils.text import shown

IMAGENET = "imagenet"


def pretrained_weights(config: EncoderConfig) -> dict[str, Tensor]:
    """The tensors that `config.pretrained` names, by torchvision's names.

    `imagenet` is torchvision's first classifier of this depth, as timm publishes it in safetensors; the hub's SHA-256
    is checked, and what was fetched is not fetched again.

    Raises:
        PrismError: there is no such file; it is damaged; no network or no huggingface_hub, with the place where the
            file may be put by hand.
    """
    path = Path(config.pretrained).expanduser()
    if config.pretrained == IMAGENET:
        repository = f"timm/resnet{config.depth}.tv_in1k"
        path = default_cache_dir() / "pretrained" / f"resnet{config.depth}.tv_in1k.safetensors"
        fetch_file(repository, "model", "model.safetensors", path)
    elif not path.is_file():
        raise PrismError(f"pretrained: expected 'imagenet' or a safetensors file, got {shown(config.pretrained)}")
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PrismError(f"{path} is no sound safetensors file ({shown(str(error))}); fetch it again") from error
