import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, CompilationCount, TinyData, by_gamma, network

from lightning_biaskd import KD, ClassMap, DistillationModule, FrozenTeacher, Outputs, UserError
from lightning_biaskd.bias import partition, rectify_logits
from lightning_biaskd.distillers import SDD
from lightning_biaskd.models import resnet8

SUBSET = [2, -1, 0, -1, 1]  # five classes, of which the teacher knows three


def test_a_reordered_or_larger_network_gives_the_classes_of_the_data():
    logits = torch.randn(4, 6)
    torch.testing.assert_close(ClassMap([5, 0, 3])(logits), logits[:, [5, 0, 3]], rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_unknown_classes_have_next_to_no_probability_and_leave_the_others_as_they_were(temperature):
    logits = torch.randn(8, 3) * 5
    mapped = ClassMap(SUBSET)(logits)
    probability = F.softmax(mapped / temperature, dim=1)
    expected = F.softmax(logits / temperature, dim=1)
    torch.testing.assert_close(probability[:, [2, 4, 0]], expected, rtol=1e-5, atol=1e-7)
    assert (probability[:, [1, 3]] < 1e-9).all()
    assert mapped.isfinite().all()


@pytest.mark.parametrize("size", [(4, 5), (7, 3)])
def test_maps_are_mapped_pixel_by_pixel(size):
    maps = torch.randn(2, 3, *size)
    pixels = maps.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(ClassMap(SUBSET)(maps).movedim(1, -1).flatten(0, -2), ClassMap(SUBSET)(pixels))


@pytest.mark.parametrize("mode", ["swap", "blend", "onehot", "revise"])
def test_a_teacher_is_wrong_on_what_it_does_not_know_and_corrected_there(mode):
    logits = ClassMap(SUBSET)(torch.tensor([[4.0, 1.0, 0.0]] * 3))
    target = torch.tensor([2, 1, 3])
    assert partition(logits, target).tolist() == [True, False, False]
    corrected = rectify_logits(logits, target, mode)
    assert corrected.isfinite().all()
    assert corrected.argmax(1).tolist() == [2, 1, 3]


@pytest.mark.parametrize("mode", ["swap", "drop"])
def test_losses_and_gradients_are_finite(mode):
    student = torch.randn(6, 5, requires_grad=True)
    teacher = Outputs(ClassMap(SUBSET)(torch.randn(6, 3)))
    bias = by_gamma(mode)
    bias.gamma.fill_(0.5)
    bias(KD(), Outputs(student), teacher, torch.arange(6) % 5).total.backward()
    assert student.grad.isfinite().all()


def test_a_subset_teacher_teaches(trainer):
    teacher = network(classes=3)
    module = DistillationModule(network(), teacher, teacher_classes=[0, 1, 2, -1, -1, -1])
    run = trainer()
    run.fit(module, TinyData(labels=torch.arange(48) % CLASSES))
    assert run.callback_metrics["bias/wrong_rate"] >= 0.5
    assert run.callback_metrics["val/teacher_acc1"] <= 0.5
    frozen = FrozenTeacher(teacher, classes=ClassMap([0, 1, 2, -1, -1, -1]))
    image = torch.randn(2, 1, 6, 6)
    rewrapped = DistillationModule(network(), frozen).teacher
    torch.testing.assert_close(rewrapped(image).logits, module.teacher(image).logits)


def test_the_classifier_is_mapped_with_its_logits_and_all_compiles():
    module = DistillationModule(resnet8(5, 1), resnet8(3, 1), SDD(), bias=None, teacher_classes=SUBSET).eval()
    image, target = torch.randn(8, 1, 8, 8), torch.arange(8) % 5
    module.rehearse(image)
    teacher = module.teacher(image)
    pooled = teacher.features["-1"].mean((2, 3))
    torch.testing.assert_close(teacher.head(pooled), teacher.logits)

    def step(image, target):
        return module.distiller(module.outputs_of(image), module.teacher(image), target)

    compiled = torch.compile(step, backend=CompilationCount(), fullgraph=True)
    torch.testing.assert_close(compiled(image, target), step(image, target))


@pytest.mark.parametrize("index", [[], [-1, -1], [0, -2]])
def test_an_impossible_map_is_one_line(index):
    with pytest.raises(UserError, match="a class map names"):
        ClassMap(index)


def test_one_output_for_two_classes_is_refused():
    with pytest.raises(UserError, match="names output 3 for 2 classes"):
        ClassMap([0, 3, -1, 3, -1])


def test_an_output_that_is_not_there_is_one_line(trainer):
    with pytest.raises(UserError, match="names output 6 of a network that has 6"):
        trainer().fit(DistillationModule(network(), network(), teacher_classes=[6, 1, 2, 3, 4, 5]), TinyData())


def test_a_teacher_of_other_classes_is_told_of_the_map(trainer):
    with pytest.raises(UserError, match="the teacher gives 9 classes and the student 6: .*teacher_classes"):
        trainer().fit(DistillationModule(network(), network(9)), TinyData())
