"""Whether two checkpoints hold the same bits; shared with benchmarks/kill_and_resume.py."""

import torch

PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "random_states", "global_step")


def same(a, b):
    """Whether two nested values are equal, their tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def differing(a, b):
    """The parts of two checkpoints that differ."""
    return [part for part in PARTS if not same(a.get(part), b.get(part))]
