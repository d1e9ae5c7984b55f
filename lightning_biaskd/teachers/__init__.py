"""The frozen teacher: how it is run, and a cache of its outputs."""

from lightning_biaskd.teachers.cache import TeacherCache
from lightning_biaskd.teachers.ensemble import EnsembleTeacher
from lightning_biaskd.teachers.frozen import FrozenTeacher

__all__ = ["EnsembleTeacher", "FrozenTeacher", "TeacherCache"]
