"""Our mean loss against what the published implementations compute on one small batch.

The numbers were made by running each named repository's own loss in float64; none of its code is here. ``factor`` is
what theirs is to be multiplied by, and ``note`` says why; ``rel`` is the tolerance where it is not 1e-6. Where it is
``filled``, what a method learns was set, there as here, to sin(1)/2, sin(2)/2, … in the order of its parameters.
"""

import json
from pathlib import Path

import pytest
import torch
from settings import SETTINGS
from torch.nn.utils import vector_to_parameters

from lightning_biaskd import distillers

FILES = [json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("published_values*.json"))]
CASES = [(values, case) for values in FILES for case in values["cases"]]


def build(class_path, init_args):
    return getattr(distillers, class_path)(
        **{name: build(**value) if isinstance(value, dict) else value for name, value in init_args.items()}
    )


def fill(distiller):
    count = sum(p.numel() for p in distiller.parameters())
    vector_to_parameters((torch.arange(count, dtype=torch.float64) + 1).sin() / 2, distiller.parameters())


@pytest.mark.parametrize(
    ("values", "case"), CASES, ids=[f"{case['class_path']}-{case['source'].split()[0]}" for _, case in CASES]
)
def test_equals_the_published_implementation(values, case):
    student, teacher = (torch.tensor(values[name], dtype=torch.float64) for name in ("student", "teacher"))
    outputs = SETTINGS[case["class_path"]].outputs
    distiller = build(case["class_path"], case["init_args"])
    distiller.build(outputs(student), outputs(teacher))
    if case.get("filled"):
        fill(distiller)
    loss = distiller(outputs(student), outputs(teacher), torch.tensor(values["target"])).mean()
    assert loss.item() == pytest.approx(case["factor"] * case["published"], rel=case.get("rel", 1e-6))
