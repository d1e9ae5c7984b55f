"""Exporting the trained student, and loading it again."""

from lightning_biaskd.export.student import export_student, load_student

__all__ = ["export_student", "load_student"]
