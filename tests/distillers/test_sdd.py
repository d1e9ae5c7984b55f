"""What SDD does beyond the common properties."""

import pytest
import torch
from properties import batch
from settings import dkd, kd, mapped, sdd

from lightning_biaskd import DKD, KD, Needs, Outputs, UserError, WeightedSum
from lightning_biaskd.distillers import DIST, SDD, LabelSmoothing, LogitStandardization, TeKAP


def rows(distiller):
    student, teacher, target = batch(rows=20)
    expected = zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
    return distiller(mapped(student), mapped(teacher), target), list(expected)


@pytest.mark.parametrize(("inner", "reference"), [(KD(), kd), (DKD(beta=2.0), lambda s, t, y: dkd(s, t, y, beta=2.0))])
def test_two_scales_equal_the_slow_reference(inner, reference):
    actual, expected = rows(SDD(inner, scales=(1, 2)))
    slow = [sdd(s, t, y, reference, scales=(1, 2)) for s, t, y in expected]
    torch.testing.assert_close(actual, torch.tensor(slow, dtype=torch.float64), rtol=1e-6, atol=0)


def test_one_scale_is_the_inner_method():
    student, teacher, target = batch()
    actual = SDD(DIST(), scales=(1,))(mapped(student), mapped(teacher), target)
    torch.testing.assert_close(actual, DIST()(Outputs(student), Outputs(teacher), target))


def test_complementary_cells_count_twice():
    student, teacher, target = batch(rows=20)
    once, twice, thrice = (
        SDD(complementary_weight=w)(mapped(student), mapped(teacher), target) for w in (1.0, 2.0, 3.0)
    )
    torch.testing.assert_close(twice - once, thrice - twice)
    assert (twice > once).any()


def test_stands_for_its_inner_method():
    inner = DKD(temperature=2.0, warmup_epochs=20)
    outer = SDD(inner, layer="stage", teacher_layer=-2)
    outer.set_epoch(9)
    assert inner.ramp == 0.5
    assert (outer.temperature, outer.needs.layers, outer.needs.teacher_layers) == (2.0, ("stage",), ("-2",))
    assert outer.reads == "features"
    assert SDD(LabelSmoothing()).reads == "nothing"


def test_those_around_it_read_what_it_reads():
    both = WeightedSum([(KD(), 1.0), (SDD(teacher_layer="layer4"), 1.0)])
    assert both.needs == Needs(("-1",), ("layer4",), embedding=True)
    assert LogitStandardization(SDD()).needs.embedding


def test_a_map_that_the_classifier_does_not_read_is_refused():
    student, _, _ = batch()
    fits = mapped(student)._replace(embedding=student)
    SDD().build(fits, fits)
    with pytest.raises(UserError, match="does not read the average of layer '-1'"):
        SDD().build(fits, fits._replace(embedding=student + 1))


def test_refusals():
    for inner in (SDD(), TeKAP()):
        with pytest.raises(ValueError, match="reads logits alone"):
            SDD(inner)
    with pytest.raises(ValueError, match="begin with 1"):
        SDD(scales=(2, 4))
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    tokens = Outputs(logits, {"-1": torch.zeros(2, 3, 4)}, head=torch.nn.Identity())
    for outputs in (Outputs(logits), tokens, mapped(logits)._replace(head=None)):
        with pytest.raises(UserError, match="layer '-1' and the classifier"):
            SDD()(outputs, outputs, target)
