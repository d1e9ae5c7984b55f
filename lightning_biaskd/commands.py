"""What ``biaskd`` does beside Lightning's own commands."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_biaskd.audit import audit
from lightning_biaskd.plotting import require_matplotlib


class Commands(Trainer):
    """Lightning's Trainer, and our commands as methods, so that LightningCLI gives them model, data and options."""

    def audit(
        self, model: LightningModule, datamodule: LightningDataModule, output: str = "audit", passes: int = 1
    ) -> None:
        """Look for the teacher's bias in the training data, before any training.

        Args:
            model: a DistillationModule.
            datamodule: the data.
            output: Folder for audit.txt, audit.json and audit.png.
            passes: How often the training data are gone through, each time augmented anew.
        """
        require_matplotlib()
        self.fit_loop.max_epochs = passes
        report = audit(model, datamodule, self)
        if self.is_global_zero:
            report.save(output)
            print(f"\n{report}\n\naudit.txt, audit.json and audit.png are in {output!r}")
