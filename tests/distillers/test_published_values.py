"""Our mean loss against what the published implementations compute on one small batch.

The numbers were made by running each named repository's own loss in float64; none of its code is here. ``factor`` is
what theirs is to be multiplied by, and ``note`` says why.
"""

import json
from pathlib import Path

import pytest
import torch

from lightning_biaskd import Outputs, distillers

VALUES = json.loads((Path(__file__).parent / "published_values.json").read_text())


def build(class_path, init_args):
    return getattr(distillers, class_path)(
        **{name: build(**value) if isinstance(value, dict) else value for name, value in init_args.items()}
    )


@pytest.mark.parametrize("case", VALUES["cases"], ids=lambda case: f"{case['class_path']}-{case['source'].split()[0]}")
def test_equals_the_published_implementation(case):
    student, teacher = (torch.tensor(VALUES[name], dtype=torch.float64) for name in ("student", "teacher"))
    distiller = build(case["class_path"], case["init_args"])
    loss = distiller(Outputs(student), Outputs(teacher), torch.tensor(VALUES["target"])).mean()
    assert loss.item() == pytest.approx(case["factor"] * case["published"], rel=1e-6)
