"""Metrics of the user's choice: in logs and table, for student and teacher."""

import pytest
import torch
from tiny import CLASSES, TinyData, network
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score

from lightning_biaskd import ClassificationModule, DistillationModule, UserError
from lightning_biaskd.callbacks import ResultTable
from lightning_biaskd.metrics import ChosenMetrics


def f1(**kwargs):
    return MulticlassF1Score(num_classes=CLASSES, **kwargs)


def test_they_are_logged_and_in_the_table_for_student_and_teacher(trainer, capsys):
    module, data = DistillationModule(network(), network(), metrics=[f1(average="macro")]), TinyData()
    run = trainer(callbacks=[ResultTable()])
    (found,) = run.test(module, data, verbose=False)
    module.eval()
    image, target = data.loader.dataset.tensors
    for key, net in (("MulticlassF1Score", module.student), ("teacher_MulticlassF1Score", module.teacher.model)):
        assert found[f"test/{key}"] == pytest.approx(f1(average="macro")(net(image), target).item(), abs=1e-6)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "MulticlassF1Score" in line]
    assert len([cell for cell in row.split("│") if cell.strip()]) == 4
    module.train()
    run = trainer(max_epochs=2)
    run.fit(module, data)
    assert {"val/MulticlassF1Score", "val/teacher_MulticlassF1Score"} <= set(run.callback_metrics)


def test_epochs_are_counted_alone(trainer):
    module = ClassificationModule(network(), metrics={"f1": f1()}, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    first, second = (
        trainer().validate(module, TinyData(), verbose=False)[0]["val/f1"],
        trainer().validate(module, TinyData(), verbose=False)[0]["val/f1"],
    )
    assert first == second


def test_a_metric_with_several_values_has_a_key_for_each():
    chosen = ChosenMetrics({"f1": f1(average=None)}, "val/")
    chosen.update(torch.eye(CLASSES), torch.arange(CLASSES))
    assert list(chosen.compute()) == [f"val/f1_{label}" for label in range(CLASSES)]


def test_logits_between_0_and_1_are_still_logits():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0, 0, 0]])
    seen = []

    class Spy(MulticlassF1Score):
        def update(self, preds, target):
            seen.append(preds)
            super().update(preds, target)

    ChosenMetrics([Spy(num_classes=CLASSES)]).update(logits, torch.tensor([2]))
    torch.testing.assert_close(seen[0], logits.softmax(1))


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (lambda: [f1(), f1(average=None)], "two MulticlassF1Score: give a mapping"),
        (lambda: {"acc1": f1()}, "'acc1' is logged already"),
        (lambda: [MulticlassConfusionMatrix(CLASSES)], "MulticlassConfusionMatrix gives a tensor .*only numbers"),
        (lambda: [MulticlassF1Score(num_classes=3)], "metrics: one of MulticlassF1Score refuses probabilities"),
    ],
)
def test_what_cannot_be_logged_is_refused(metrics, says, trainer):
    with pytest.raises(UserError, match=says):
        trainer().validate(ClassificationModule(network(), metrics=metrics()), TinyData(), verbose=False)
