"""How others run a distillation step, written anew after their description: the yardsticks of ``throughput.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class PillowImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets hold them, augmented one by one."""

    def __init__(self, image: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        array = image.permute(0, 2, 3, 1).contiguous().numpy()
        self.array = array.squeeze(-1) if array.shape[-1] == 1 else array
        self.target = target.tolist()
        self.view = transforms.Compose(
            [
                transforms.RandomCrop(image.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        return self.view(Image.fromarray(np.asarray(self.array[item]))), self.target[item]


def batches(dataset: PillowImages, batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        yield from loader


def usual_step(
    student: nn.Module, teacher: nn.Module, loader: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Callable[[], None]:
    """As the well-known libraries do: a teacher without graph, 0.1 cross-entropy and 0.9 KD at τ 4, SGD, a meter."""
    student.train()
    teacher.eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        image, target = (x.to(device) for x in next(loader))
        with torch.no_grad():
            answer = teacher(image)
        logits = student(image)
        soft = F.kl_div((logits / 4).log_softmax(1), (answer / 4).softmax(1), reduction="batchmean") * 16
        loss = 0.1 * F.cross_entropy(logits, target) + 0.9 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # for its meter

    return step


def released_step(
    student: nn.Module, teacher: nn.Module, loader: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Callable[[], None]:
    """As the paper's released script does: the graph goes through the teacher, answers are swapped one by one."""
    student.train()
    teacher.eval().requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)

    def divergence(logits: Tensor, answer: Tensor) -> Tensor:
        return F.kl_div((logits / 5).log_softmax(1), (answer / 5).softmax(1), reduction="batchmean")

    def step() -> None:
        image, target = (x.to(device) for x in next(loader))
        optimizer.zero_grad()
        logits, answer = student(image), teacher(image)
        right = answer.argmax(1) == target
        easy = divergence(logits[right], answer[right]) if right.any() else 0.0  # the script gives NaN here
        hard_answer, hard_logits, hard_target = answer[~right], logits[~right], target[~right]
        first = hard_answer.argmax(1)
        for i in range(len(hard_target)):
            y, top = hard_target[i], first[i]
            hard_answer[i][top], hard_answer[i][y] = hard_answer[i][y].clone(), hard_answer[i][top].clone()
        hard = divergence(hard_logits, hard_answer) if len(hard_target) else 0.0
        loss = 0.5 * F.cross_entropy(logits, target) + 0.5 * 25 * (0.5 * easy + 0.5 * hard)
        loss.backward()
        optimizer.step()
        loss.item()

    return step
