"""Networks that predict noise in a map, with statistics of kept samples alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.networks.outputs import at_least_float32


class KeptBatchNorm2d(nn.Module):
    """BatchNorm whose statistics in training are those of the kept samples; the running ones if there are too few.

    It is no ``nn.BatchNorm2d``, so ``sync_batchnorm`` doesn't replace it by a layer that knows no kept samples.

    Args:
        channels: D.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.momentum, self.eps = 0.1, 1e-5
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalises (B, D, H, W); ``keep`` (B,) bool are the kept samples, ``None`` for all."""
        values = at_least_float32(x)
        mean, var = self._statistics(values, keep) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        return (values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)

    def _statistics(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        used = torch.ones_like(x[:, 0, 0, 0], dtype=torch.bool) if keep is None else keep
        used = used[:, None, None, None]
        count = used.sum() * x.shape[2:].numel()
        enough = count > 1
        mean = torch.where(used, x, 0).sum((0, 2, 3)) / count.clamp_min(1)
        spread = torch.where(used, x - mean[:, None, None], 0).square().sum((0, 2, 3))
        with torch.no_grad():
            unbiased = spread / (count - 1).clamp_min(1)
            for running, own in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(own.to(running.dtype), (self.momentum * enough).to(running.dtype))
        var = spread / count.clamp_min(1)
        return mean.where(enough, self.running_mean.clone()), var.where(enough, self.running_var.clone())


class KeptSequential(nn.Sequential):
    """Layers that hand the kept samples to those among them that need them."""

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Applies the layers one after the other."""
        for layer in self:
            x = layer(x, keep) if isinstance(layer, KeptBatchNorm2d | KeptSequential) else layer(x)
        return x


class Bottleneck(KeptSequential):
    """Three convolutions around a residual connection, inside ``reduction`` times narrower."""

    def __init__(self, channels: int, reduction: int) -> None:
        inside = max(channels // reduction, 1)
        layers: list[nn.Module] = []
        for into, out, side in ((channels, inside, 1), (inside, inside, 3), (inside, channels, 1)):
            layers += [nn.Conv2d(into, out, side, padding=side // 2), KeptBatchNorm2d(out), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, D, H, W) to the same."""
        return x + super().forward(x, keep)


class Denoiser(nn.Module):
    """Predicts the noise in a map at a step of the diffusion.

    Args:
        channels: D.
        steps: the number of steps that it can be asked about.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.time = nn.Embedding(steps, channels)
        self.predict = KeptSequential(
            Bottleneck(channels, 4),
            Bottleneck(channels, 4),
            nn.Conv2d(channels, channels, 1),
            KeptBatchNorm2d(channels),
        )

    def forward(self, x: Tensor, step: Tensor, keep: Tensor | None = None) -> Tensor:
        """The noise (B, D, H, W) in a map at steps (B,)."""
        noise: Tensor = self.predict(x + self.time(step)[..., None, None], keep)
        return noise


class NoiseShare(nn.Module):
    """Says how clean a map is: 1 for a map without noise, 0 for noise alone.

    Args:
        channels: D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = Bottleneck(channels, 8)
        self.classify = nn.Linear(channels, 2)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, D, H, W) to (B,)."""
        logits: Tensor = self.classify(self.features(x, keep).mean((2, 3)))
        return logits.softmax(1)[:, 0]
