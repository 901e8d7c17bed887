"""Token ids of preference pairs, made by TRL's own DPOTrainer, so that values fit what the trainer will train on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tvkd_client.http import TeacherClient
from tvkd_client.token_rows import token_rows, used_ids
from tvkd_client.trl_private import prepared
from tvkd_shared.adapter import base_folder, is_adapter
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.vocabulary import template_digest, tokens_by_id, vocabulary_digest
from tvkd_shared.wire import TeacherInfo

NO_TOKENIZER = "the model was saved without a tokenizer: whether its vocabulary is the right one was not checked"
"""What is said of a model of which `check_vocabulary` cannot tell."""


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, without the network, or of a hub id. An adapter without one has its base's.

    Raises InvalidRequest when there is none.
    """
    if is_adapter(name) and not (Path(name) / "tokenizer_config.json").exists():
        return load_tokenizer(str(base_folder(name)))
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
    return token_rows(dataset, name, tokenizer, lambda rows: prepared(rows, tokenizer))


def are_chats(tokens: datasets.Dataset | datasets.IterableDataset) -> bool:
    """Whether these rows of tokens are made of messages, by the columns that they came from."""
    first: dict[str, Any] = next(iter(tokens), {})
    return isinstance(first.get("chosen"), list)


def other_template(tokenizer: PreTrainedTokenizerBase, teacher: TeacherInfo) -> str | None:
    """A line to say where a teacher's chat template is another than that by which conversations became tokens."""
    if teacher.chat_template_digest in (None, template_digest(tokenizer.chat_template)):
        return None
    return (
        f"the chat template of tokenizer {tokenizer.name_or_path} is not that of teacher {teacher.name}, which reads "
        "conversations as the student's template writes them; where that is not meant, take over the teacher's, or set "
        "teacher_tokenizer in training"
    )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    teacher: TeacherInfo,
    client: TeacherClient | None = None,
    data_sets: Iterable[datasets.Dataset] = (),
) -> None:
    """Raises InvalidRequest when ids that these rows of tokens use do not stand for the teacher's tokens.

    Ids of another vocabulary would be scored as other words, plausibly and without a sign. Tokens that only one of the
    two has and the rows do not use, such as an added pad token, do no harm: the teacher's server is asked for its
    tokens. Without a client no other vocabulary passes. A teacher that was saved without a tokenizer cannot be compared
    with, and passes.
    """
    if teacher.tokenizer_digest in (None, vocabulary_digest(tokenizer.get_vocab())):
        return
    another = f"tokenizer {tokenizer.name_or_path} has another vocabulary than teacher {teacher.name}"
    accepted = (
        "other_vocabulary (--other-vocabulary) accepts it, if it has the same ids for all that the data use, and a "
        "training's teacher_tokenizer gives the teacher its own tokens of the text"
    )
    if client is None:
        raise InvalidRequest(f"{another}, whose ids might stand for other words; {accepted}")
    ours, theirs = tokens_by_id(tokenizer.get_vocab()), client.vocabulary()
    used = sorted(set().union(*map(used_ids, data_sets)))
    tokens = [
        (number, *(names[number] if number < len(names) else None for names in (ours, theirs))) for number in used
    ]
    if differing := [(number, our, their) for number, our, their in tokens if our != their]:
        listed = ", ".join(f"{number} is {our!r} here and {their!r} there" for number, our, their in differing[:3])
        raise InvalidRequest(
            f"{another}, in {len(differing):,} of {len(used):,} ids that the data use: {listed}; {accepted}"
        )
