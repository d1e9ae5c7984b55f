"""The ``biaskd`` command."""
