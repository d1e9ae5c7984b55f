import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as ops

from lightning_biaskd.data.augment import color_jitter, crop_and_flip, cutout
from lightning_biaskd.data.strong_view import _GREY_PATCH, _PATCH, _STRONG, strong_view
from lightning_biaskd.data.views import count_views, view_bits, view_number
from lightning_biaskd.randomness.bits import further_bits, random_bits, uniform


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


def affine(image, *numbers):
    return image.transform(image.size, Image.Transform.AFFINE, numbers)


# what Pillow calls the operations, in the order of ours
PILLOW = (
    lambda image, v: image,
    lambda image, v: ImageOps.autocontrast(image),
    lambda image, v: ImageOps.equalize(image),
    lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    lambda image, v: ImageEnhance.Color(image).enhance(v),
    lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    lambda image, v: ImageOps.posterize(image, int(v)),
    lambda image, v: ImageOps.solarize(image, v),
    lambda image, v: image.rotate(v),
    lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    lambda image, v: affine(image, 1, 0, -round(v * image.size[0]), 0, 1, 0),
    lambda image, v: affine(image, 1, 0, 0, 0, 1, -round(v * image.size[1])),
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", range(len(_STRONG)))
def test_strong_operations_are_those_of_pillow(number, channels):
    operation, low, high = _STRONG[number]
    smooth = torch.rand(channels, 4, 4, generator=torch.Generator().manual_seed(number)) * 255
    image = F.interpolate(smooth[None], (32, 32), mode="bilinear")[0].to(torch.uint8)
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    for share in (0.0, 0.2, 0.55, 0.999):
        value = low + (high - low) * share
        actual = operation(image, value)
        expected = torch.from_numpy(np.array(PILLOW[number](picture, value))).view(32, 32, channels).permute(2, 0, 1)
        assert actual.dtype == torch.uint8
        off = (actual.int() - expected.int()).abs() > 4
        assert off.float().mean() < 0.04  # rounding to the nearest pixel


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_strong_views_depend_on_their_bits_alone(shape):
    image = torch.randint(256, (40, *shape), dtype=torch.uint8)
    bits = random_bits(0, 0, torch.arange(40))
    before, state = image.clone(), torch.get_rng_state()
    views = strong_view(image, bits)
    assert (views.shape, views.dtype) == (image.shape, torch.uint8)
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(strong_view(image[7:9].flip(0), bits[7:9].flip(0)), views[7:9].flip(0))
    assert (views != image).flatten(1).any(1).all()
    other = strong_view(image, random_bits(0, 1, torch.arange(40)))
    assert (views != other).flatten(1).any(1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_strong_views_have_a_patch_of_up_to_half_a_side(channels):
    image = torch.zeros(300, channels, 32, 32, dtype=torch.uint8)
    patch = torch.tensor(_PATCH if channels == 3 else _GREY_PATCH, dtype=torch.uint8).view(-1, 1, 1)
    covered = (strong_view(image, random_bits(0, 0, torch.arange(300))) == patch).all(1)
    heights, widths = (covered.any(axis).sum(1) for axis in (2, 1))
    assert torch.equal(heights * widths, covered.flatten(1).sum(1))
    assert min(heights.min(), widths.min()) >= 1
    assert 15 <= max(heights.max(), widths.max()) <= 17
    assert covered.any(0).float().mean() > 0.99


def test_further_bits_are_others_and_independent():
    bits = random_bits(0, 0, torch.arange(100_000))
    other = further_bits(bits)
    assert (other >= 0).all()
    assert (other != bits).all()
    for shift in (0, 20):
        a, b = ((draw >> shift & 1).double() - 0.5 for draw in (bits, other))
        assert abs((a * b).mean()) < 0.01


@pytest.mark.parametrize(("padding", "flip", "count"), [(4, True, 162), (1, False, 9), (0, True, 2), (0, False, 1)])
def test_views_can_be_counted(padding, flip, count):
    assert count_views(padding, flip) == count
    image = torch.randint(1, 256, (1, 2, 9, 9), dtype=torch.uint8).expand(count, -1, -1, -1)
    numbers = torch.arange(count)
    views = crop_and_flip(image, view_bits(numbers, flip), padding, flip)
    assert len(views.flatten(1).unique(dim=0)) == count
    assert torch.equal(view_number(view_bits(numbers, flip), padding, flip), numbers)
    bits = random_bits(0, 0, torch.arange(500))
    drawn = crop_and_flip(image[:1].expand(500, -1, -1, -1), bits, padding, flip)
    assert torch.equal(drawn, views[view_number(bits, padding, flip)])


def test_a_cutout_covers_a_square_around_a_random_pixel():
    image = torch.randint(1, 256, (200, 3, 12, 10), dtype=torch.uint8)
    bits = random_bits(0, 0, torch.arange(200))
    views = cutout(image, bits, 5, (0.0, 0.0, 0.0))
    assert views.dtype == torch.uint8
    centres = set()
    for view, original, number in zip(views, image, bits.tolist(), strict=True):
        row, column = number % 12, number // 12 % 10
        expected = original.clone()
        expected[:, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = 0
        assert torch.equal(view, expected)
        centres.add((row, column))
    assert len(centres) > 80


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_jittered_as_torchvision_does(channels):
    image = torch.randint(256, (20, channels, 8, 8), dtype=torch.uint8)
    bits = random_bits(0, 0, torch.arange(20))
    views = color_jitter(image, bits, 0.4)
    draws = [0.6 + 0.8 * uniform(b) for b in (bits, further_bits(bits), further_bits(bits + 1))]
    for view, original, brightness, contrast, saturation in zip(
        views, image, *(d.tolist() for d in draws), strict=True
    ):
        expected = ops.adjust_contrast(ops.adjust_brightness(original, brightness), contrast)
        expected = ops.adjust_saturation(expected, saturation) if channels == 3 else expected
        assert (view.int() - expected.int()).abs().max() <= 1  # rounding
    assert all(0.6 <= draw.min() < 0.7 < 1.2 < draw.max() < 1.4 for draw in draws)
    assert torch.equal(color_jitter(image, bits, 0.0), image)
