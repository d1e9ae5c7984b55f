from lightning.pytorch import Callback
from tiny import TinyData, network

from lightning_biaskd import ClassificationModule, DistillationModule
from lightning_biaskd.callbacks import DistillationProgressBar


class Shown(Callback):
    """What the bar shows after each step, and how often it looked."""

    def __init__(self, bar):
        self.bar = bar
        self.after = []

    def on_train_batch_end(self, *_):
        self.after.append(dict(self.bar._metric_component._metrics))


def shown(trainer, module, **kwargs):
    bar = DistillationProgressBar()
    watcher = Shown(bar)
    trainer(callbacks=[bar, watcher], enable_progress_bar=True, **kwargs).fit(module, TinyData())
    return watcher.after


def test_student_teacher_and_gap_are_shown(trainer):
    last = shown(trainer, DistillationModule(network(), network()), max_epochs=2, log_every_n_steps=2)[-1]
    assert set(last) == {"loss", "student", "teacher", "gap"}
    student, teacher, gap = (float(last[name].rstrip("%")) for name in ("student", "teacher", "gap"))
    assert abs(student - teacher - gap) < 0.11
    assert last["gap"][0] in "+-"


def test_without_a_teacher_it_shows_the_accuracy(trainer):
    assert set(shown(trainer, ClassificationModule(network()), max_epochs=2, log_every_n_steps=1)[-1]) == {
        "loss",
        "accuracy",
    }


def test_it_looks_only_where_something_is_logged(trainer):
    after = shown(trainer, DistillationModule(network(), network()), log_every_n_steps=3, limit_val_batches=0)
    losses = [metrics.get("loss") for metrics in after]
    assert losses[0] is None
    assert losses[2] == losses[3] == losses[4] != losses[5]
