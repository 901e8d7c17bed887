"""The only file that touches what TRL keeps private: names with an underscore, and how methods are called.

TRL 1.16's loss reads the reference log-probs from the batch when it was told to precompute them. Shaping goes in there,
and so do reference log-probs from a store, so no line of TRL's loss is copied. A TRL that has moved one of these parts
is refused with one line.
"""

import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import datasets
import trl
from accelerate.utils import is_peft_model
from transformers import PreTrainedTokenizerBase
from trl.scripts.utils import TrlParser
from trl.trainer.dpo_trainer import DPOTrainer

from tvkd_client.completions import SPAN_COLUMNS, TEACHER_COLUMNS
from tvkd_client.processes import processes
from tvkd_client.token_rows import TOKEN_COLUMNS, token_rows
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.versions import supported

_SIGNATURES = {
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_send_telemetry": ["self"],
    "_set_signature_columns_if_needed": ["self"],
    "compute_ref_log_probs": ["self", "model", "inputs"],
}


def check() -> None:
    """Raises InvalidRequest when the installed TRL is not the one that this package was written against."""
    if trl.__version__ not in supported("trl"):
        raise _refused("its version is not supported")
    for name, expected in _SIGNATURES.items():
        method = getattr(DPOTrainer, name, None)
        parameters = list(inspect.signature(method).parameters) if method else None
        if parameters != expected:
            raise _refused(f"its DPOTrainer.{name} takes {parameters}, not {expected}")


def prepared(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """The rows with `TOKEN_COLUMNS`, by DPOTrainer's own preparation. Nothing is cut and no row is dropped.

    Raises InvalidRequest when TRL has changed, and whatever TRL raises.
    """
    check()
    # TRL takes one row after another.
    count = processes(len(rows))
    # These are all the attributes that the preparation reads. Without max_length it drops no row.
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    config: Any = SimpleNamespace(dataset_num_proc=count, max_length=None, truncation_mode="keep_start")
    if count:
        # Of one row at a time threads have no use, and forking after they were used is warned of.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokens = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, config, "preference")
    except AttributeError as error:
        raise _refused(f"preparing preference data failed with: {error}") from error
    if not set(TOKEN_COLUMNS) <= set(tokens.column_names):
        raise _refused(f"preparing preference data made the columns {', '.join(tokens.column_names)}")
    return tokens


class OpenDPOTrainer(DPOTrainer):
    """DPOTrainer whose private parts have public names, and which reports nothing to the hub."""

    _tag_names = ["trl", "dpo", "tvkd"]  # noqa: RUF012 - TRL's own form
    _name = "TVKD"
    _paper = {  # noqa: RUF012
        "title": "Preference Distillation via Value based Reinforcement Learning",
        "id": "2509.16965",
        "citation": """\
@inproceedings{kwon2025preference,
    title        = {{Preference Distillation via Value based Reinforcement Learning}},
    author       = {Minchan Kwon and Junwon Ko and Kangil Kim and Junmo Kim},
    year         = 2025,
    booktitle    = {Advances in Neural Information Processing Systems 38, NeurIPS 2025},
    eprint       = {2509.16965},
}""",
    }

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, also where TRL was given a processor of text and images."""
        tokenizer: PreTrainedTokenizerBase = self._tokenizer
        return tokenizer

    @property
    def metrics_since_log(self) -> defaultdict[str, list[float]]:
        """The numbers of each metric since the last log, in the mode (training or evaluation) that the model is in."""
        model: Any = self.model
        metrics: defaultdict[str, list[float]] = self._metrics["train" if model.training else "eval"]
        return metrics

    @contextmanager
    def reference_from_batch(self) -> Iterator[None]:
        """Inside, TRL's loss takes `ref_chosen_logps` and `ref_rejected_logps` from the batch."""
        before = self.precompute_ref_logps
        self.precompute_ref_logps = True
        try:
            yield
        finally:
            self.precompute_ref_logps = before

    def _prepare_dataset(
        self,
        dataset: datasets.Dataset | datasets.IterableDataset,
        processing_class: Any,
        args: Any,
        dataset_name: str,
    ) -> datasets.Dataset | datasets.IterableDataset:
        # All rows come this way, those to train on and those to evaluate with, now or later.
        prepare = super()._prepare_dataset

        def say(line: str) -> None:
            if args.process_index == 0:
                print(f"tvkd: {line}", file=sys.stderr)

        tokens = token_rows(
            dataset,
            dataset_name,
            self._tokenizer,
            lambda rows: prepare(rows, processing_class, args, dataset_name),
            max_length=args.max_length,
            say=say,
            show=dataset_name == "train" and not args.quiet,
        )
        return self.complete_rows(tokens, dataset_name, say)

    def complete_rows(self, rows: Any, name: str, say: Callable[[str], None]) -> Any:
        """Rows of tokens with what a trainer adds to them. `say` tells the user a line, in one process."""
        return rows

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        kept: Any = self._signature_columns  # the columns that reach the collator
        self._signature_columns = list(dict.fromkeys([*kept, *TEACHER_COLUMNS, *SPAN_COLUMNS]))  # type: ignore[assignment]

    def reference_rows(self, dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.Dataset | None:
        """Rows in memory whose reference log-probs are compared, because batches bring their own; None for all rows."""
        return None

    def check_reference(self, rows: datasets.Dataset | None) -> None:
        """Called with the columns ref_chosen_logps and ref_rejected_logps that TRL computed for `reference_rows`.

        The main process alone has them; in the others `rows` is None.
        """

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        # Reference log-probs need no values, and the model would be given the extra key of a batch with scores.
        collator = self.data_collator
        self.data_collator = getattr(collator, "unscored", collator)
        try:
            rows = self.reference_rows(dataset)
            if rows is None:
                return super()._precompute_ref_logps(dataset, name, batch_size)
            if name == "train":
                # TRL writes them to a file, in the main process, and reads it in all. Of rows in memory it lies in a
                # temporary folder of the process, so others need share no disk, and no other run finds it.
                try:
                    rows = super()._precompute_ref_logps(rows, name, batch_size)
                except FileNotFoundError:
                    if self.accelerator.is_main_process:
                        raise
                    rows = None
                self.check_reference(rows)
            return dataset
        finally:
            self.data_collator = collator

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # transformers reads the folders of further adapters, such as TRL's copy for the reference, and with them it
        # leaves out the adapter that trains, which would start anew without a word.
        adapted: Any = self.model if model is None else model
        if is_peft_model(adapted) and "ref" in adapted.peft_config and not self.is_fsdp_enabled:
            adapted.load_adapter(resume_from_checkpoint, adapted.active_adapter, is_trainable=True)

    def _send_telemetry(self) -> None:
        """TRL reports each trainer to the hub by default; this trainer does not."""


class ObservedModel:
    """Calls the model during one loss, and keeps its first output: the log-prob of each token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._model(*args, **kwargs)
        if self._output is None:
            self._output = output
        return output

    def log_probs(self, completion_mask: Any) -> Any:
        """log π of each token, float [2B, L − 1], from a mask of shape [2B, L]; 0 outside the completions."""
        # A prompt-learning adapter puts virtual tokens in front; the last L − 1 columns are the real ones.
        return self._output.log_probs[:, -(completion_mask.size(1) - 1) :]


class SettingsParser(TrlParser):
    """TrlParser that raises InvalidRequest where TRL's prints a page of usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise InvalidRequest(message)


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"TRL {trl.__version__} is installed, and {reason}; install an unchanged trl{supported('trl')}"
    )
