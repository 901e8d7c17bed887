"""Token ids of preference pairs, made by TRL's own DPOTrainer, so that values fit what the trainer will train on."""

from pathlib import Path

import datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tvkd_client.trl_private import prepare_preferences
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


def tokenize_preferences(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, name: str = "given"
) -> datasets.Dataset:
    """The data set with columns prompt_ids, chosen_ids and rejected_ids, whole: nothing is truncated, no row dropped.

    Plain text gets the end-of-sequence token, messages go through the chat template, an implicit prompt is extracted.
    Raises InvalidRequest when the tokenizer cannot do that, for a row that TRL cannot train on, and when the installed
    TRL is not a supported one.
    """
    return prepare_preferences(dataset, tokenizer, name)


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
