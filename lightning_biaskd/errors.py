"""The exception for mistakes of the user, as opposed to bugs."""

import math


class UserError(ValueError):
    """Wrong input; the message is one line that names the remedy.

    The command line prints that line alone, without a traceback, and exits with status 1.
    """


def check_weights(**weights: float) -> None:
    """Refuses factors of a loss that are negative or not finite.

    Raises:
        UserError: one of them is.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"{name} must be 0 or a positive number, got {weight}")


def check_positive(**values: float) -> None:
    """Refuses numbers, such as temperatures, that are not positive or not finite.

    Raises:
        UserError: one of them is.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} must be positive, got {value}")


def check_share(**values: float) -> None:
    """Refuses numbers outside [0, 1].

    Raises:
        UserError: one of them is.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} must be in [0, 1], got {value}")
