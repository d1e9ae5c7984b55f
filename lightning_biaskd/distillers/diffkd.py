"""Knowledge diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, same_size
from lightning_biaskd.features.connectors import require_built, to_device_of
from lightning_biaskd.features.denoiser import Denoiser, KeptBatchNorm2d, KeptSequential, NoiseShare
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.randomness.bits import normal
from lightning_biaskd.randomness.draws import Draws

_STEPS = 1000


def diffkd_loss(refined: Tensor, teacher: Tensor, predicted: Tensor, noise: Tensor) -> Tensor:
    """The mean squared differences of a refined map from the teacher's, and of predicted noise from what was added.

    Args:
        refined: (B, D, H, W), the student's map without the noise that was found in it.
        teacher: (B, D, H, W).
        predicted: (B, D, H, W), the noise predicted in the teacher's map with noise.
        noise: (B, D, H, W), that noise.

    Returns:
        (B,)

    Example:
        >>> zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> diffkd_loss(zero, 2 * one, zero, one)
        tensor([5.])
    """
    gaps = (at_least_float32(a) - at_least_float32(b) for a, b in ((refined, teacher), (predicted, noise)))
    return torch.stack([gap.square().flatten(1).mean(1) for gap in gaps]).sum(0)


def signal_and_noise(like: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sqrt{\bar\alpha_t}` and :math:`\sqrt{1 - \bar\alpha_t}`, each (1000,).

    :math:`\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)`, with β from 0.0001 to 0.02 in equal steps.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    alphas = (1 - torch.linspace(0.0001, 0.02, _STEPS, dtype=dtype, device=like.device)).cumprod(0)
    return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


class DiffKD(FeatureDistiller):
    r"""Huang, Zhang, Zheng, You, Wang, Qian, Xu, *Knowledge Diffusion for Distillation*, NeurIPS 2023.

    arXiv 2305.15712; on features. The student's map is taken for a noisy version of the teacher's. A diffusion model
    :math:`\epsilon_\theta` learns to predict noise that is added to the teacher's map, and then removes what it finds
    in the student's, whose result is compared with the teacher's map:

    .. math::
        \ell_i = \mathrm{mean}\big(p(d(F^S_i)) - F^T_i\big)^2
            + \mathrm{mean}\big(\epsilon_\theta(\sqrt{\bar\alpha_{t}}\, F^T_i + \sqrt{1 - \bar\alpha_{t}}\, \eta_i, t)
            - \eta_i\big)^2

    with Gaussian noise η and a random step t of 1000. The denoising d brings the student's map to the teacher's width
    by a 1x1 convolution, mixes it with as much noise as a learned network chooses for the sample, and takes the steps
    of DDIM from half of the diffusion to its start. p is a 1x1 convolution and BatchNorm.

    Noise and steps are a function of the run's seed, the epoch and the image's index, so a resumed run and any number
    of processes draw the same. With ``keep``, all statistics of BatchNorm in these networks are those of the kept
    samples of the process, as maps of the teacher pass through them.

    The defaults are those of the authors' code (hunto/image_classification_sota) for ImageNet: the last map, 5 steps,
    and weight 1 with cross-entropy at 1. There the teacher's map is first compressed by an autoencoder, and logits are
    distilled in the same way; neither is implemented.

    Args:
        layer: the student's feature map.
        teacher_layer: the teacher's feature map; ``None`` for the same name.
        steps: steps of the denoising, at most 500.

    Raises:
        UserError: no step or too many; when called before ``build``, without the images' indices, or on features that
            are neither maps nor tokens.
    """

    needs = Needs(index=True)

    def __init__(self, layer: Layer = -1, teacher_layer: Layer | None = None, steps: int = 5) -> None:
        super().__init__(layer, teacher_layer)
        if not 1 <= steps <= _STEPS // 2:
            raise UserError(f"steps must be in [1, {_STEPS // 2}], got {steps}")
        self.steps = steps
        self.connectors = nn.ModuleList()
        self.draws = Draws()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the networks."""
        ((s, t),) = self.pairs(student, teacher)
        own, channels = as_map(s).shape[1], as_map(t).shape[1]
        project = KeptSequential(nn.Conv2d(channels, channels, 1), KeptBatchNorm2d(channels))
        networks = [nn.Conv2d(own, channels, 1), Denoiser(channels, _STEPS), NoiseShare(channels), project]
        self.connectors = to_device_of(networks, s)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        transform, denoise, clean_share, project = require_built(self.connectors)
        dtype = next(self.parameters()).dtype
        s, teachers = (as_map(x) for x in next(self.pairs(student, teacher)))
        s, teachers = same_size(transform(s.to(dtype)), teachers)
        t = teachers.to(dtype)
        bits = self.draws(student.index, 1 + 2 * t[0].numel())
        start, noise = normal(bits[:, 1:]).to(dtype).view(-1, 2, *t.shape[1:]).unbind(1)
        clean = clean_share(s, keep)[:, None, None, None]
        refined = project(self._denoised(denoise, clean * s + (1 - clean) * start, keep), keep)
        step = ((bits[:, 0] >> 39) * _STEPS) >> 24
        signal, deviation = (x[step][:, None, None, None] for x in signal_and_noise(t))
        predicted = denoise(signal * t + deviation * noise, step, keep)
        refined, predicted, noise = (x.to(teachers.dtype) for x in (refined, predicted, noise))
        return diffkd_loss(refined, teachers, predicted, noise)

    def _denoised(self, denoise: nn.Module, x: Tensor, keep: Tensor | None) -> Tensor:
        """The steps of DDIM, without new noise."""
        signal, deviation = signal_and_noise(x)
        stride = _STEPS // (2 * self.steps)
        for step in range((self.steps - 1) * stride, -1, -stride):
            noise = denoise(x, torch.full_like(x[:, 0, 0, 0], step, dtype=torch.long), keep)
            x = (x - deviation[step] * noise) / signal[step]
            if step:
                x = signal[step - stride] * x + deviation[step - stride] * noise
        return x

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.draws.set_epoch(epoch)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, steps={self.steps}"
