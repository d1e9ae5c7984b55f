"""Running a teacher by ONNX Runtime."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.named_inputs import Input
from lightning_biaskd.networks.outputs import Outputs, at_least_float32, logits_of
from lightning_biaskd.networks.tap import FeatureTap


class OnnxRuntime:
    """A network that ONNX Runtime runs on the CPU.

    Args:
        tap: the network, of which no features are read.
        image: (B, …), a few images, with which the network is captured.
        precision: ``None`` or ``"32"``.

    Raises:
        UserError: ONNX Runtime isn't installed or can't run the network, or is given features, half precision or
            another device than the CPU.
    """

    def __init__(self, tap: FeatureTap, image: Input, precision: str | None) -> None:
        if not isinstance(image, Tensor):
            raise UserError("teacher_backend 'onnxruntime' takes images, not named tensors: choose 'fast'")
        if tap.layers or tap.embedding or image.device.type != "cpu" or precision not in (None, "32"):
            raise UserError(
                "teacher_backend 'onnxruntime' gives logits alone, in float32, on the CPU: choose 'fast' or 'compile' "
                "for a method that reads features, a GPU, or half precision"
            )
        try:
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError:
            raise UserError(
                "teacher_backend 'onnxruntime' needs onnxruntime and onnxscript: pip install 'lightning-biaskd[export]'"
            ) from None
        batch = {0: torch.export.Dim("batch")}
        network = _Logits(tap.model)
        network.training = False  # not by eval(), which exported programs refuse
        try:
            program = torch.onnx.export(
                network,
                (image[:2].float(),),
                dynamo=True,
                dynamic_shapes=(batch,),
                input_names=["image"],
                verbose=False,
            )
        except Exception as error:  # whatever in the network's code can't be captured
            raise UserError(
                f"teacher_backend 'onnxruntime' can't capture {type(tap.model).__name__}: choose 'fast'"
            ) from error
        assert program is not None  # as it is when no path is given
        model = program.model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the student wants the cores next
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Input) -> Outputs:
        assert isinstance(image, Tensor)
        (logits,) = self.session.run(None, {"image": image.float().numpy()})
        return Outputs(torch.from_numpy(logits))


class _Logits(nn.Module):
    """A network that returns its logits as a tensor, whatever it returns them in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return at_least_float32(logits_of(self.network(image)))
