"""A warning for a teacher that nobody trained."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.teachers.frozen import FrozenTeacher


def warn_of_untrained(teacher: FrozenTeacher, accuracy: float, classes: int) -> None:
    """Warns once if a teacher that was given no weights is about as accurate as chance.

    Args:
        teacher: the teacher.
        accuracy: its top-1 accuracy, in [0, 1].
        classes: number of classes.
    """
    chance = (1 + min(1.0, (classes - 1) / 4)) / classes
    if teacher.as_built and accuracy < chance and not teacher.told_untrained:
        teacher.told_untrained = True
        rank_zero_warn(
            f"the teacher {type(teacher.model).__name__} was given no weights and is right on {accuracy:.1%} of the "
            f"images, near chance ({1 / classes:.1%}): set teacher_weights, or pretrained weights of the network"
        )
