"""Image classifiers of Hugging Face's transformers, by name, for YAML files."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_biaskd.errors import UserError


def from_pretrained(name: str, num_classes: int | None = None, revision: str = "main", **options: Any) -> nn.Module:
    """An image classifier of transformers with its weights, as ``AutoModelForImageClassification`` loads it.

    It reads only safetensors and runs no code from the repository.

    Args:
        name: a repository on the hub, OWNER/NAME, or a folder written by ``save_pretrained``.
        num_classes: C, for a new classifier with random weights; ``None`` keeps the one in the file.
        revision: a branch, tag or commit of the repository.
        options: further arguments of ``from_pretrained``, such as ``local_files_only``.

    Raises:
        UserError: transformers isn't installed, there is no such model, or it is not an image classifier.
    """
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise UserError("networks of Hugging Face need transformers: pip install transformers") from error
    if num_classes is not None:
        options |= {"num_labels": num_classes, "ignore_mismatched_sizes": True}
    options |= {"use_safetensors": True, "trust_remote_code": False}
    try:
        network: nn.Module = AutoModelForImageClassification.from_pretrained(name, revision=revision, **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"transformers can't load {name!r} ({str(error).strip().splitlines()[0]}): give OWNER/NAME of the hub, or "
            "a folder that save_pretrained wrote"
        ) from error
    return network
