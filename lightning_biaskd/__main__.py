"""``python -m lightning_biaskd`` is ``biaskd``."""

from lightning_biaskd.cli import main

if __name__ == "__main__":
    main()
