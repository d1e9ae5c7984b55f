import torch
import torch.nn.functional as F

from lightning_biaskd.data.augment import crop_and_flip, random_bits


def test_views_depend_on_seed_epoch_and_index_alone():
    index = torch.randperm(1000)
    bits = random_bits(3, 5, index)
    assert torch.equal(random_bits(3, 5, index[:10]), bits[:10])
    assert torch.equal(random_bits(3, 5, index.flip(0)), bits.flip(0))
    for seed, epoch in ((4, 5), (3, 6), (5, 3)):
        assert (random_bits(seed, epoch, index) != bits).all()


def test_bits_are_uniform_and_independent_from_epoch_to_epoch():
    index = torch.arange(100_000)
    first, second = random_bits(0, 0, index), random_bits(0, 1, index)
    assert (first >= 0).all()
    for modulus in (2, 9, 81):
        counts = torch.bincount((first >> 1) % modulus, minlength=modulus).double()
        expected, freedom = len(index) / modulus, modulus - 1
        chi2 = ((counts - expected).square() / expected).sum()
        assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    a, b = ((bits >> 20 & 1).double() - 0.5 for bits in (first, second))
    assert abs((a * b).mean()) < 0.01


def test_equals_a_slow_reference():
    image = torch.randint(256, (64, 2, 7, 5), dtype=torch.uint8)
    bits = random_bits(0, 0, torch.arange(64))
    for padding, flip in ((2, True), (1, False), (0, True)):
        views = crop_and_flip(image, bits, padding, flip)
        seen = set()
        for view, original, number in zip(views, image, bits.tolist(), strict=True):
            mirrored, rest = bool(number & 1) and flip, number >> 1
            top, left = rest % (2 * padding + 1), rest // (2 * padding + 1) % (2 * padding + 1)
            crop = F.pad(original, (padding,) * 4)[:, top : top + 7, left : left + 5]
            assert torch.equal(view, crop.flip(2) if mirrored else crop)
            seen.add((mirrored, top, left))
        assert len(seen) > (2 * padding + 1) ** 2 / 2
        assert views.dtype == torch.uint8
