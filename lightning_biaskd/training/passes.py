"""Trainers that run a network over data without training anything."""

from typing import Any

QUIET: dict[str, Any] = {
    **{"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
    **{"limit_val_batches": 0, "num_sanity_val_steps": 0},
    **{"accumulate_grad_batches": 1, "gradient_clip_val": None},  # nothing is trained
}
"""Arguments of a Trainer that leaves no trace."""
