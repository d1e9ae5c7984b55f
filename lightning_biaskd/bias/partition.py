"""Part 1 of the paper's method: on which samples the teacher is right."""

from torch import Tensor


def partition(logits: Tensor, target: Tensor) -> Tensor:
    r"""Splits a batch into right knowledge and bias.

    .. math:: \mathrm{right}_i = \big[z^T_{i, y_i} \ge \max_c z^T_{i, c}\big]

    A tie for the first place counts as right on every device; comparing ``argmax`` would not guarantee that.

    Args:
        logits: (B, C) teacher logits, or probabilities.
        target: (B,) labels.

    Returns:
        (B,) bool, True where the teacher is right.

    Example:
        >>> import torch
        >>> partition(torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1]))
        tensor([ True, False,  True])
    """
    return logits.gather(1, target.unsqueeze(1)).squeeze(1) >= logits.amax(dim=1)
