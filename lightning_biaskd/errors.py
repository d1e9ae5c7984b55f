"""The exception for mistakes of the user, as opposed to bugs."""


class UserError(ValueError):
    """Wrong input; the message is one line that names the remedy.

    The command line prints that line alone, without a traceback, and exits with status 1.
    """
