"""The one exception that stands for a mistake of the user's, not of the code."""


class UserError(ValueError):
    """Wrong input; the message is one line that names the remedy.

    The command line prints that line alone, without a traceback, and exits with status 1.
    """
