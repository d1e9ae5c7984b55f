"""Comparing methods: a matrix of trainings from one YAML file, and a report on it."""

from lightning_biaskd.compare.command import compare, write_report
from lightning_biaskd.compare.matrix import Block, Matrix, Row, Run
from lightning_biaskd.compare.scheduler import Outcome

__all__ = ["Block", "Matrix", "Outcome", "Row", "Run", "compare", "write_report"]
