"""Errors as the command line prints them: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

import jsonargparse
import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_biaskd.errors import UserError

TRACEBACK = "BIASKD_TRACEBACK"
"""The environment variable that brings the whole traceback back."""

_PACKAGE = Path(__file__).parents[1]
_NETWORKS = _PACKAGE / "models"
"""Our networks complain about their input just as other libraries' do."""
_STANDARD = Path(sysconfig.get_paths()["stdlib"])
_FRAMEWORKS = [Path(module.__file__).parent for module in (torch, lightning, jsonargparse) if module.__file__]
_OUR_OWN = (UserError, MisconfigurationException, FileNotFoundError, IsADirectoryError)
_REMEDIES = [
    (
        r"expected input.* channels, but got \d+ channels",
        "build the networks with the data's in_channels, or say by teacher_input or student_input what they were "
        "trained to see",
    ),
    (
        r"Expected more than 1 value per channel",
        "batch normalisation cannot train on a single image: set --data.drop_last true, or another --data.batch_size",
    ),
    (
        r"Wrong image (height|width)|Input (height|width) .*match model|Input image size|Kernel size can't be greater "
        r"than actual input|Output size is too small|mat1 and mat2 shapes",
        "the network was built for images of another size: set --data.image_size where the data have it, let "
        "model_input, student_input or teacher_input resize the images (pretrained, or mean, std and size), or build "
        "the network for these images (many take img_size or image_size)",
    ),
    (
        r"finished reduction in the prior iteration|parameters that were not used in producing the loss",
        "some parameters take no part in the loss, such as auxiliary heads: add "
        "--trainer.strategy ddp_find_unused_parameters_true",
    ),
    (
        r"out of memory|can't allocate memory|not enough memory",
        "lower --data.batch_size and raise --trainer.accumulate_grad_batches, or use --trainer.precision bf16-mixed",
    ),
    (
        r"more than one stateful callback of type .?ModelCheckpoint",
        "two ModelCheckpoints must differ in monitor, mode or how often they save, for example "
        "--trainer.callbacks.monitor val/acc1 or --trainer.callbacks.every_n_epochs 1",
    ),
    (
        r"Not a directory|Read-only file system|Permission denied|File exists",
        "the run needs a folder that it can write to: set --trainer.logger.save_dir, or --trainer.default_root_dir",
    ),
    (
        r"When using the learning rate finder",
        "the rate belongs to the optimizer, where LearningRateFinder cannot change it: try a few values of "
        "--model.optimizer.lr, or let `biaskd compare` do so",
    ),
    (
        r"modulo by zero",
        "a number of batches or epochs is 0: accumulate_grad_batches, check_val_every_n_epoch and every_n_… of "
        "callbacks are 1 or more",
    ),
    (
        r"has no attribute .backbone.",
        "BackboneFinetuning needs a module with an attribute `backbone`: subclass DistillationModule and set "
        "self.backbone to the part of the student that it should freeze",
    ),
    (
        r"view size is not compatible with input tensor",
        "a callback or network needs contiguous weights: add --model.channels_last false",
    ),
    (
        r"[Cc]an't (get|pickle) (local )?|cannot be pickled|cannot pickle|Can't get local object",
        "spawned processes get a pickled copy of everything: use --trainer.strategy ddp, or define the class or "
        "function at the top of a file",
    ),
]


def fail(message: str, status: int) -> NoReturn:
    """Prints a message as one line and exits."""
    rank = os.environ.get("LOCAL_RANK", "0")
    where = "" if rank == "0" else f" (process {rank})"
    print("biaskd: error:", " ".join(message.split()) + where, file=sys.stderr)
    raise SystemExit(status)


def explained(error: BaseException) -> str | None:
    """The line for an error.

    Args:
        error: as caught.

    Returns:
        The line; ``None`` for a fault in this package, and where ``BIASKD_TRACEBACK`` asks for the traceback.
    """
    if os.environ.get(TRACEBACK):
        return None
    text, place = _from_other_process(str(error)) or (str(error), _place(error))
    if isinstance(error, _OUR_OWN):
        return text
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), None)
    if remedy is None and not isinstance(error, OSError) and _is_ours(place):
        return None
    kind = "" if text.startswith(type(error).__name__) else f"{type(error).__name__}: "
    hint = f"; {remedy}" if remedy else ""
    return f"{kind}{text.strip() or 'no message'}{hint} (raised in {place}; {TRACEBACK}=1 shows the traceback)"


def _from_other_process(text: str) -> tuple[str, str] | None:
    """What a worker's or spawned process's error says, and where, from the traceback that it sends as text."""
    if "Traceback (most recent call last):" not in text:
        return None
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    raised = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Warning|Exit)\b.*(?:\n(?!\s*$).*)*)", text, re.M)
    place = _chosen([(file, int(line)) for file, line in frames])
    return (raised[-1] if raised else text.strip().splitlines()[-1]), place


def _place(error: BaseException) -> str:
    return _chosen([(frame.filename, frame.lineno or 0) for frame in extract_tb(error.__traceback__)])


def _chosen(frames: list[tuple[str, int]]) -> str:
    """The deepest frame outside the frameworks and this package, unless this package itself raised the error."""
    if not frames:
        return "an unknown place"
    begun = max((i for i, (file, _) in enumerate(frames) if Path(file).parent == Path(__file__).parent), default=-1)
    foreign = [frame for frame in frames[begun + 1 :] if not _passes_on(frame[0])]
    file, line = frames[-1] if _below(frames[-1][0], [_PACKAGE]) or not foreign else foreign[-1]
    return f"{file}:{line}"


def _passes_on(file: str) -> bool:
    standard = _below(file, [_STANDARD]) and "site-packages" not in file
    return file.startswith("<") or standard or _below(file, [_PACKAGE, *_FRAMEWORKS])


def _below(file: str, folders: list[Path]) -> bool:
    return any(folder in Path(file).parents for folder in folders)


def _is_ours(place: str) -> bool:
    return _below(place, [_PACKAGE]) and not _below(place, [_NETWORKS])
