"""Compiling modules in place."""

from __future__ import annotations

from torch import nn


def compile_in_place(module: nn.Module, mode: str | None = None) -> None:
    """Compiles a module as one graph when it is first called; the names of its weights stay.

    PyTorch gives up after eight graphs of a function, counted over all modules of the process. A notebook that compares
    nine forms needs more, so the limit is raised to that of all functions together.

    Args:
        module: to compile.
        mode: of ``torch.compile``.
    """
    from torch._dynamo import config  # slow to import

    config.cache_size_limit = max(config.cache_size_limit, config.accumulated_cache_size_limit)
    module.compile(fullgraph=True, mode=mode)
