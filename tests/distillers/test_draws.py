"""Methods with random numbers of their own, DiffKD, MGD and TeKAP, in a fit."""

import pytest
import torch
from tiny import TinyData, network, snapshot, unchanged

from lightning_biaskd import DistillationModule, UserError
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import MGD, DiffKD, TeKAP

every_method = pytest.mark.parametrize("method", [DiffKD, MGD, TeKAP])


def fitted(method, trainer, epochs, seed=3, path=None, **kwargs):
    torch.manual_seed(0)
    networks = network(10, width=3), network(10, width=5)
    torch.manual_seed(seed)
    module = DistillationModule(*networks, method(), bias=None, kd_weight=1e-3)
    run = trainer(max_epochs=epochs)
    run.fit(module, DigitsDataModule(batch_size=32, train_size=64), **kwargs)
    if path is not None:
        run.save_checkpoint(path)
    return module


@every_method
def test_a_run_goes_on_exactly(method, trainer, tmp_path):
    path = tmp_path / "half.ckpt"
    whole = fitted(method, trainer, 3)
    fitted(method, trainer, 1, path=path)
    resumed = fitted(method, trainer, 3, seed=4, ckpt_path=path)
    assert resumed.distiller.draws.seed == 3
    assert unchanged(snapshot(whole), resumed)


@every_method
def test_the_seed_and_the_epoch_matter(method, trainer):
    module = fitted(method, trainer, 2)
    assert module.distiller.draws.epoch == 1
    again, other = fitted(method, trainer, 2), fitted(method, trainer, 2, seed=4)
    assert unchanged(snapshot(module), again)
    assert module.distiller.draws.seed != other.distiller.draws.seed


@every_method
def test_batches_without_indices_are_refused(method, trainer):
    module = DistillationModule(network(), network(), method())
    with pytest.raises(UserError, match=r"needs to know which images are in a batch: .* \(image, target, index\)"):
        trainer().fit(module, TinyData())
