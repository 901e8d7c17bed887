"""The one place that touches what TRL keeps private. It says so loudly when TRL has moved it.

TRL 1.16's loss reads the reference log-probs from the batch when it was told to precompute them; that is where shaping
goes in, so no line of TRL's loss is copied.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trl
from packaging.specifiers import SpecifierSet
from trl.trainer.dpo_trainer import DPOTrainer

from tvkd_shared.errors import InvalidRequest

SUPPORTED = SpecifierSet(">=1.16,<1.17")

_SIGNATURES = {
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_send_telemetry": ["self"],
    "compute_ref_log_probs": ["self", "model", "inputs"],
}


def check() -> None:
    """Raises InvalidRequest when the installed TRL is not the one this package was written against."""
    if trl.__version__ not in SUPPORTED:
        raise InvalidRequest(f"TRL {trl.__version__} is installed, and the trainer needs trl{SUPPORTED}")
    for name, expected in _SIGNATURES.items():
        method = getattr(DPOTrainer, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found != expected:
            raise InvalidRequest(
                f"DPOTrainer.{name} of TRL {trl.__version__} takes {found}, not {expected}; install an unchanged"
                f" trl{SUPPORTED}"
            )


class Recorded:
    """Stands in for the model during one loss and keeps its first output: the policy's log-probs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._model(*args, **kwargs)
        if self._output is None:
            self._output = output
        return output

    def logps(self, completion_mask: Any) -> tuple[Any, Any]:
        """log π_θ(chosen), log π_θ(rejected): two tensors of shape [B], detached, from a mask of shape [2B, L]."""
        # A prompt-learning adapter puts virtual tokens in front; the last L − 1 columns are the real ones.
        log_probs = self._output.log_probs[:, -(completion_mask.size(1) - 1) :].detach()
        chosen, rejected = log_probs.sum(1).chunk(2)
        return chosen, rejected


@contextmanager
def reference_from_batch(trainer: DPOTrainer) -> Iterator[None]:
    """Inside, TRL's loss takes `ref_chosen_logps` and `ref_rejected_logps` from the batch."""
    before = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = before


def metrics(trainer: DPOTrainer) -> dict[str, list[float]]:
    """TRL's list of numbers a metric since the last log, of the mode the model is in."""
    model: Any = trainer.model
    of_mode: dict[str, list[float]] = trainer._metrics["train" if model.training else "eval"]
    return of_mode
