"""The teacher's outputs on disk: computed once for each image and view, for all methods, modes and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from lightning_biaskd.data.numbered import NumberedViews
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError, check_positive
from lightning_biaskd.files import fingerprint
from lightning_biaskd.teachers.encoding import Encoding, StoredType
from lightning_biaskd.teachers.ensemble import EnsembleTeacher
from lightning_biaskd.teachers.ensemble_cache import EnsembleCache
from lightning_biaskd.teachers.folder import prepare
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.teachers.rows import CHECKSUM_BYTES, CHECKSUMS, DATA, Rows
from lightning_biaskd.teachers.store import OpenCache

_VERSION = 3


class TeacherCache:
    """Settings of a cache that stores a teacher's logits for each training image and view in a folder.

    :meth:`open` gives the :class:`~lightning_biaskd.teachers.store.OpenCache` that training reads and fills;
    ``biaskd cache`` fills it at once. Only logits are stored, not what a method computes from them, so one cache serves
    every method and rectification. Methods that read features can't use it. Validation images are stored without
    augmentation, test images are not stored.

    The folder records which teacher, precision, images and augmentation it was made for, and refuses any other. The
    code of your own networks and data modules is recorded by its name only; therefore some stored outputs are compared
    with the teacher's whenever a cache is opened. Every row has a checksum. All are verified on opening, which reads
    the file once, and each again when it is used. Processes on one machine share the folder, and a killed run leaves it
    in order. A folder that can't be written to is read.

    CIFAR's augmentation has 162 views per image, 1.7 GB in half precision for 100 classes; ``views=16`` of the data
    module draws from 16 fixed ones, 180 MB.

    Args:
        path: the folder. It is created if it does not exist, and its space on the disk is reserved.
        dtype: ``"float16"`` rounds the distance of each logit to the largest by at most 2⁻¹¹ of it; the teacher is
            right and wrong on the same images as without a cache. ``"float32"`` rounds nothing.
        topk: store the largest logits and their classes only, and one value for all other classes; ``None`` stores all.
            A method then sees the teacher's probabilities of the ``topk`` classes, and spread evenly over the others
            what is left, as in FKD (Shen, Xing, *A Fast Knowledge Distillation Framework for Visual Recognition*, ECCV
            2022, arXiv 2112.01528). Methods that read anything else are refused, see
            :attr:`~lightning_biaskd.Distiller.soft_labels`. Where more than ``topk`` classes share the first place,
            those left out no longer do.
        temperature: τ of the methods that use a cache with ``topk``, at which those probabilities are right.

    Raises:
        UserError: an unknown ``dtype``, ``topk`` below 1, or a temperature that is not positive.
    """

    def __init__(
        self, path: str, dtype: StoredType = "float16", topk: int | None = None, temperature: float = 1.0
    ) -> None:
        if dtype not in get_args(StoredType):
            raise UserError(f"a cache stores {' or '.join(get_args(StoredType))}, not dtype={dtype!r}")
        if topk is not None and topk < 1:
            raise UserError(f"topk={topk} stores no logit of any class: give 1 at least, or null for all")
        check_positive(temperature=temperature)
        self.path = Path(path).expanduser()
        self.dtype = dtype
        self.topk = topk
        self.temperature = temperature

    def check(self, distiller: Distiller) -> None:
        """Checks that a cache can serve a method.

        Raises:
            UserError: the method reads the teacher's features, or more of its logits than ``topk`` stores.
        """
        if distiller.needs.teacher_layers or distiller.needs.embedding:
            raise UserError(f"{type(distiller).__name__} reads the teacher's features, and a cache holds logits alone")
        for term, _ in distiller.terms() if self.topk is not None else ():
            name = type(term).__name__
            if term.reads != "nothing" and not term.soft_labels:
                raise UserError(
                    f"{name} reads more of the teacher's logits than a cache with topk={self.topk} stores: give it "
                    "topk: null, or train without a cache"
                )
            if term.reads != "nothing" and term.temperature != self.temperature:
                raise UserError(
                    f"{name} compares at temperature {term.temperature:g}, and a cache with topk={self.topk} stores "
                    f"probabilities at {self.temperature:g}: give it temperature: {term.temperature:g}, or topk: null"
                )

    def open(self, teacher: FrozenTeacher, data: Any, num_classes: int | None) -> OpenCache | EnsembleCache:
        """Creates the folder, or verifies that it belongs to this teacher and these data and is whole.

        Each teacher of an ensemble has a cache of its own in it: the folders 0, 1, and so on.

        Args:
            teacher: whose outputs are stored.
            data: the data module of the training images; its Trainer determines the precision of a teacher that has
                none of its own.
            num_classes: C, the number of classes.

        Raises:
            UserError: the views of the data can't be counted; the folder belongs to something else or is damaged; its
                disk has no room; or the teacher's outputs can't be stored, because they differ between two calls.
        """
        if isinstance(teacher, EnsembleTeacher):
            folders = [
                TeacherCache(str(self.path / str(n)), self.dtype, self.topk, self.temperature)
                for n in range(len(teacher.members))
            ]
            return EnsembleCache([f._open(t, data, num_classes) for f, t in zip(folders, teacher.members, strict=True)])
        return self._open(teacher, data, num_classes)

    def _open(self, teacher: FrozenTeacher, data: Any, num_classes: int | None) -> OpenCache:
        if (
            not isinstance(data, NumberedViews)
            or data.view_count is None
            or data.num_samples is None
            or num_classes is None
        ):
            raise UserError(
                "a cache of the teacher needs a data module whose views can be counted: no strong_view, and views=16 "
                "or so for ImageNetDataModule, with cutout or color_jitter, or with an augmentation of your own"
            )
        slots = data.view_count + 1  # and the image without augmentation
        count = data.num_samples * slots
        encoding = Encoding(num_classes, self.dtype, self.topk, self.temperature)
        header = {
            "version": _VERSION,
            "teacher": teacher.fingerprint(),
            "precision": teacher.precision or ("32-true" if data.trainer is None else data.trainer.precision),
            "data": data.fingerprint(),
            "rows": count,
            "classes": num_classes,
            "dtype": self.dtype,
            "topk": self.topk,
            **({} if self.topk is None else {"temperature": self.temperature}),  # older caches of all logits have none
        }
        try:
            prepare(self.path, header, {DATA: count * encoding.width, CHECKSUMS: count * CHECKSUM_BYTES})
            rows = Rows(self.path, encoding.width, count, int(fingerprint(*header.items()), 16))
        except OSError as error:
            raise UserError(
                f"the teacher's cache in '{self.path}' can't be used ({error.strerror}): name another folder"
            ) from error
        return OpenCache(rows, encoding, slots, teacher, data)
