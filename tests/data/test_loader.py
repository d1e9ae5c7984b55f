from itertools import chain

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from tiny import network
from torch.utils.data import DistributedSampler

from lightning_biaskd import ClassificationModule, UserError
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.data.batch import TensorImages, collate
from lightning_biaskd.data.loader import EpochSampler, ResumableLoader
from lightning_biaskd.distributed.padding import unpadded_rows

IMAGES = TensorImages(torch.zeros(103, 1, 2, 2, dtype=torch.uint8), torch.arange(103), torch.arange(103))


def loader(ranks=1, rank=0, batch_size=10, seed=3, workers=0, images=IMAGES):
    sampler = EpochSampler(images, ranks, rank, shuffle=True, seed=seed)
    return ResumableLoader(images, batch_size, sampler=sampler, collate_fn=collate, num_workers=workers)


def numbers(batches):
    return [batch.index.tolist() for batch in batches]


def epoch(number, **kwargs):
    whole = loader(**kwargs)
    whole.sampler.set_epoch(number)
    return numbers(whole)


def test_order_follows_from_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = epoch(0)
    state = torch.get_rng_state()
    assert epoch(0) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(chain(*first)) == list(range(103))
    assert len({str(order) for order in (first, epoch(1), epoch(0, seed=9))}) == 3


def test_several_processes_see_the_batches_of_one():
    one = epoch(2, batch_size=40)
    for batch, parts in zip(one[:2], zip(*(epoch(2, ranks=4, rank=r) for r in range(4)), strict=True), strict=False):
        assert sorted(batch) == sorted(chain(*parts))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", [0, 1, 7, 10, 11])
def test_it_goes_on_where_it_was(given, workers):
    first, again = loader(), loader(workers=workers)
    first.sampler.set_epoch(5)
    batches = iter(first)
    for _ in range(given):
        next(batches)
    state = first.state_dict()
    assert state["batches"] == given
    again.load_state_dict(state)
    again_epoch = 5 if given < 11 else 6
    iterator = iter(again)  # Lightning tells the epoch after this
    again.sampler.set_epoch(again_epoch)
    rest = numbers(iterator)
    assert rest == (numbers(batches) if given < 11 else epoch(6))
    again.sampler.set_epoch(again_epoch + 1)
    assert numbers(again) == epoch(again_epoch + 1)  # all of the next
    assert again.state_dict()["batches"] == len(again) == 11


def test_the_middle_of_an_epoch_is_only_that_of_the_same_batches():
    first = loader()
    batches = iter(first)
    for _ in range(7):
        next(batches)
    for other in (loader(batch_size=20), loader(batch_size=5), loader(ranks=2)):  # of 6, 21 and 6 batches
        with pytest.raises(UserError, match="in the middle of an epoch with .*: go on with the same"):
            other.load_state_dict(first.state_dict())
    batches = iter(first)
    for _ in range(8):
        next(batches)
    with pytest.raises(UserError, match="go on with the same"):  # as many batches as the whole epoch of the other
        loader(batch_size=20).load_state_dict(first.state_dict())
    list(first)
    loader(batch_size=20).load_state_dict(first.state_dict())  # its end suits any


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_rows_that_a_sampler_repeats_are_left_out(ranks, batch_size):
    seen = []
    for rank in range(ranks):
        sampler = DistributedSampler(IMAGES, ranks, rank, shuffle=False)
        part = torch.utils.data.DataLoader(IMAGES, batch_size, sampler=sampler, collate_fn=collate)
        for batch_idx, batch in enumerate(part):
            rows = unpadded_rows(part, batch_idx, len(batch.target))
            seen += batch.target[:rows].tolist()
    assert sorted(seen) == list(range(103))
    assert unpadded_rows(torch.utils.data.DataLoader(IMAGES, 10), 10, 3) == 3


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_run_does_not_begin_where_an_earlier_one_of_the_same_data_went_on(trainer, tmp_path):
    def fit(data, ckpt_path=None, callbacks=(), **kwargs):
        epochs = []
        count = LambdaCallback(on_train_batch_end=lambda trainer, *_: epochs.append(trainer.current_epoch))
        run = trainer(max_epochs=2, callbacks=[count, *callbacks], **kwargs)
        run.fit(ClassificationModule(network(10)), data, ckpt_path=ckpt_path)
        return {epoch: epochs.count(epoch) for epoch in epochs}

    written = ModelCheckpoint(tmp_path, "a", every_n_train_steps=2)
    fit(DigitsDataModule(batch_size=200), callbacks=[written], max_steps=2, enable_checkpointing=True)
    data = DigitsDataModule(batch_size=200)
    assert fit(data, tmp_path / "a.ckpt") == {0: 4, 1: 6}
    assert fit(data) == {0: 6, 1: 6}
