"""The commands of ``biaskd`` that Lightning's Trainer doesn't have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_biaskd.audit import audit
from lightning_biaskd.errors import UserError
from lightning_biaskd.export.card import card_of
from lightning_biaskd.export.formats import Format, Pixels
from lightning_biaskd.export.student import export_student
from lightning_biaskd.files import sha256
from lightning_biaskd.metrics.class_names import class_names_of
from lightning_biaskd.networks.inputs import InputSpec
from lightning_biaskd.networks.weights import load_weights, locate, read
from lightning_biaskd.plotting import require_matplotlib
from lightning_biaskd.training.batches import inputs_of
from lightning_biaskd.training.classification import ClassificationModule
from lightning_biaskd.training.distillation import DistillationModule
from lightning_biaskd.training.fill_cache import fill_cache


class Commands(Trainer):
    """Lightning's Trainer with one method for each further command of ``biaskd``."""

    def audit(
        self, model: LightningModule, datamodule: LightningDataModule, output: str = "audit", passes: int = 1
    ) -> None:
        """Look for the teacher's bias in the training data, before any training.

        Args:
            model: a DistillationModule.
            datamodule: the data.
            output: Folder for audit.txt, audit.json and audit.png.
            passes: Number of passes over the training data, each with new augmentation.
        """
        require_matplotlib()
        if passes < 1:
            raise UserError(f"passes={passes}: the audit needs one pass over the training data at least")
        self.fit_loop.max_epochs = passes
        report = audit(model, datamodule, self)
        if self.is_global_zero:
            report.save(output)
            print(f"\n{report}\n\naudit.txt, audit.json and audit.png are in {output!r}")

    def cache(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Compute all of the teacher's answers to the training images, into the folder of --model.teacher_cache.

        Args:
            model: a DistillationModule with a teacher_cache.
            datamodule: the data.
        """
        fill_cache(model, datamodule, self)

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        format: Format | None = None,
        pixels: Pixels = "normalized",
        quantize: Literal["dynamic"] | None = None,
        ema: bool = True,
        test: bool = False,
    ) -> Path:
        """Writes the trained network, alone, as safetensors, for torch.export or for ONNX, with a card.

        See :func:`~lightning_biaskd.export_student`. The card tells the metrics of the moment at which the checkpoint
        was written. Where the teacher's file isn't at hand, ``--model.teacher_weights null`` does without.

        Args:
            model: a :class:`~lightning_biaskd.ClassificationModule` or
                :class:`~lightning_biaskd.DistillationModule`, whose student is exported; it takes the weights.
            datamodule: the data, for how images are normalised and how large they are.
            ckpt_path: The checkpoint to export.
            output: A file ending in .safetensors, .pt2 or .onnx, or a folder; student.FORMAT where it isn't given.
            format: What the ending of the output says, where it isn't given.
            pixels: What a graph takes: images as normalised in training, or pixels in [0, 1] or in 0…255.
            quantize: Store and multiply the matrices of an ONNX file in 8 bits.
            ema: Export the averaged weights, where the checkpoint holds both.
            test: Test the network first, and put what it achieves into the card.

        Returns:
            The path of the file.
        """
        if not isinstance(model, ClassificationModule):
            raise UserError(
                f"{type(model).__name__} is no ClassificationModule, whose networks alone are exported: call "
                "load_weights(network, checkpoint) for its weights"
            )
        if ckpt_path is None:
            raise UserError("name the checkpoint to export: --ckpt_path runs/…/checkpoints/last.ckpt")
        file = locate(ckpt_path)
        content = read(file)
        network = _restored(model, content, ckpt_path, ema)
        metrics = self.test(model, datamodule=datamodule, verbose=False)[0] if test else content.get("metrics", {})
        told = {key: content[key] for key in ("epoch", "global_step", "method") if key in content}
        averaged = {"averaged": ema} if "current_model_state" in content else {}
        if test and (isinstance(self.limit_test_batches, int) or self.limit_test_batches < 1):
            told["limit_test_batches"] = self.limit_test_batches  # the metrics are of a part of the test set
        recipe = _recipe(model.hparams) or _recipe(content.get("hyper_parameters", {}))
        path = export_student(
            network,
            output,
            _input_spec(model, datamodule),
            format,
            pixels,
            quantize,
            recipe if network is model.model else None,
            content.get("class_names") or class_names_of(datamodule),
            metrics,
            {"checkpoint": ckpt_path, "sha256": sha256(file), "module": type(model).__name__, **told, **averaged},
        )
        rank_zero_info(f"exported to {path}; its card is {card_of(path)}")
        return path


def _restored(model: ClassificationModule, content: Any, ckpt_path: str, ema: bool) -> nn.Module:
    """The network to deploy, with the weights of a checkpoint; a method may have learned a part of it."""
    model.weights = None  # a test of it is not to begin with the initial ones
    if not isinstance(model, DistillationModule) or "rehearsed" not in content:
        load_weights(model.model, ckpt_path, ema=ema)
        return model.model
    model.on_load_checkpoint(content)
    model.load_state_dict(
        content["state_dict" if ema or "current_model_state" not in content else "current_model_state"]
    )
    return model.deployed()


def _input_spec(model: ClassificationModule, datamodule: LightningDataModule | None) -> InputSpec | dict[str, Tensor]:
    """The format of the network's images, or some of the named tensors that it takes."""
    spec = model.convert.wanted if model.convert else model.data_input or InputSpec.of_data(datamodule)
    if spec is not None:
        return dataclasses.replace(spec, size=spec.size or getattr(datamodule, "image_size", None))
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
        batch = next(iter(datamodule.train_dataloader()), None)
        first = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
        if isinstance(first, Mapping):
            return inputs_of(first)
    raise UserError("it isn't known how the images are normalised: give data_input, or a data module with mean and std")


def _recipe(hparams: Mapping[str, Any]) -> Mapping[str, Any] | None:
    specs = (hparams.get(name) for name in ("student", "model"))
    return next((spec for spec in specs if isinstance(spec, Mapping) and "class_path" in spec), None)
