"""Token ids of preference pairs, made by TRL's own DPOTrainer, so that values fit what the trainer will train on."""

from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tvkd_client.trl_private import TOKEN_COLUMNS, prepare_preferences
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.vocabulary import vocabulary_digest
from tvkd_shared.wire import TeacherInfo


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
    Raises InvalidRequest when the tokenizer cannot do that, a row has no prompt or completion token, or the installed
    TRL is not a supported one.
    """
    plain = isinstance(dataset[0]["chosen"], str)
    if plain and tokenizer.eos_token is None:
        raise InvalidRequest("the tokenizer has no end-of-sequence token, which DPO puts behind plain text; set one")
    if not plain and not tokenizer.chat_template:
        raise InvalidRequest("the tokenizer has no chat template, and the data set is conversational; set one")
    tokens = prepare_preferences(dataset, tokenizer)
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
