"""Exporting the trained student, and loading it again."""

from lightning_biaskd.export.card import card_of
from lightning_biaskd.export.student import Format, Pixels, export_student, load_student

__all__ = ["Format", "Pixels", "card_of", "export_student", "load_student"]
