"""Token ids of preference pairs, made by TRL's own DPOTrainer, so that values fit what the trainer will train on.

The preparation is private to TRL: its version and its arguments are checked, and a change fails loudly.
"""

import inspect
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DPOTrainer

from tvkd_client.trl_private import SUPPORTED
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.vocabulary import vocabulary_digest
from tvkd_shared.wire import TeacherInfo

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")

_PARAMETERS = ["self", "dataset", "processing_class", "args", "dataset_name"]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, without the network, or of a hub id. Raises InvalidRequest when there is none."""
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir())
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"tokenizer {name} cannot be read: {reason}") from error


def tokenize_preferences(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """The data set with columns prompt_ids, chosen_ids and rejected_ids, whole: nothing is truncated, no row dropped.

    Plain text gets the end-of-sequence token, messages go through the chat template, an implicit prompt is extracted.
    Raises InvalidRequest when the tokenizer cannot do that or a row has no prompt or completion token, and when
    the installed TRL may prepare data in another way than the one known here.
    """
    _check_trl()
    plain = isinstance(dataset[0]["chosen"], str)
    if plain and tokenizer.eos_token is None:
        raise InvalidRequest("the tokenizer has no end-of-sequence token, which DPO puts behind plain text; set one")
    if not plain and not tokenizer.chat_template:
        raise InvalidRequest("the tokenizer has no chat template, and the data set is conversational; set one")
    # What the preparation reads of a trainer and its config. Without max_length no row is dropped.
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    config: Any = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    try:
        tokens = DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, config, "preference")
    except TemplateError as error:
        raise InvalidRequest(f"the tokenizer's chat template refuses a conversation: {error}") from error
    except AttributeError as error:
        raise _moved(str(error)) from error
    if not set(TOKEN_COLUMNS) <= set(tokens.column_names):
        raise _moved(f"it made the columns {', '.join(tokens.column_names)}")
    _check_lengths(tokens)
    return tokens


def measure(tokens: datasets.Dataset) -> tuple[npt.NDArray[np.int64], int]:
    """Token counts of each row's prompt, chosen and rejected completion, shape (rows, 3), and the largest token id."""
    lengths, largest = [], -1
    for batch in tokens.select_columns(list(TOKEN_COLUMNS)).with_format("arrow").iter(1000):
        lengths.append(np.stack([pc.list_value_length(batch[name]).to_numpy() for name in TOKEN_COLUMNS], axis=1))
        largest = max(largest, *(pc.max(pc.list_flatten(batch[name])).as_py() or 0 for name in TOKEN_COLUMNS))
    return np.concatenate(lengths).astype(np.int64), largest


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, teacher: TeacherInfo) -> None:
    """Raises InvalidRequest when the tokenizer's ids do not stand for the teacher's tokens.

    Ids of another vocabulary would be scored as other words, plausibly and without a sign. A teacher that was saved
    without a tokenizer cannot be compared with, and passes.
    """
    digest = vocabulary_digest(tokenizer.get_vocab())
    if teacher.tokenizer_digest not in (None, digest):
        raise InvalidRequest(
            f"tokenizer {tokenizer.name_or_path} has another vocabulary (digest {digest}) than teacher {teacher.name} "
            f"({teacher.tokenizer_digest}): its ids would be scored as other words"
        )


def _check_lengths(tokens: datasets.Dataset) -> None:
    lengths, _ = measure(tokens)
    rows, columns = np.nonzero(lengths == 0)
    if len(rows):
        name = TOKEN_COLUMNS[columns[0]].removesuffix("_ids")
        raise InvalidRequest(
            f"row {rows[0]}: {name} has no token (and {len(rows) - 1} more such); one at least is needed"
        )


def _check_trl() -> None:
    if version("trl") not in SUPPORTED:
        raise _moved("another release")
    prepare = getattr(DPOTrainer, "_prepare_dataset", None)
    if prepare is None or list(inspect.signature(prepare).parameters) != _PARAMETERS:
        raise _moved("DPOTrainer._prepare_dataset takes other arguments")


def _moved(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"TRL {version('trl')} may prepare preference data in another way: {what}; install trl{SUPPORTED}"
    )
