"""SIGTERM: all processes stop after the same batch, write a checkpoint, and say that training isn't finished."""

from __future__ import annotations

import signal
from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StopRequest:
    """Notes a SIGTERM, whichever process gets it, and ends the fit on all of them after the same batch.

    Lightning calls a collective in its signal handler, which hangs where every process gets the signal, as SLURM sends
    it. Here the handler only sets a flag. The processes compare their flags at the end of each batch, in place of the
    comparison that Lightning makes at its beginning.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._noted = False
        trainer._signal_connector._sigterm_notifier_fn = self._note  # type: ignore[method-assign,assignment]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = self._compare_later  # type: ignore[method-assign]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True

    def _compare_later(self) -> None:
        pass

    def obey(self, trainer: Trainer) -> None:
        """Ends the fit if any process got the signal. Every process must call this at the same time.

        Raises:
            SIGTERMException: with exit status 143 in the first process of a machine.
        """
        noted = self._noted
        if trainer.world_size > 1:
            noted = trainer.strategy.reduce_boolean_decision(noted, all=False)
        if not noted:
            return
        trainer._signal_connector.received_sigterm = True
        rank_zero_info(
            f"SIGTERM: training stops after step {trainer.global_step}; the same line with --ckpt_path last goes on"
        )
        stop = SIGTERMException()
        # a process that launched others is killed with SIGKILL as soon as one of them fails
        stop.code = 128 + signal.SIGTERM if trainer.local_rank == 0 else 0
        raise stop
