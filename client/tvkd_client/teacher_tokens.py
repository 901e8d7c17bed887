"""Pairs as the teacher's tokens, where its tokenizer is not the student's, and the spans that both have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from tvkd_client.preference_tokens import load_tokenizer
from tvkd_client.rows import Rows
from tvkd_client.source import ServerSource, ValueSource, teacher_of
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.spans import Spans, shared_spans, token_spans
from tvkd_shared.text import TokenizedItem, tokenize
from tvkd_shared.vocabulary import template_digest, vocabulary_digest
from tvkd_shared.wire import Message, TextItem, first_mistake

Tokenize = Callable[[Sequence[TextItem]], list[TokenizedItem]]

TEACHER_COLUMNS = ("teacher_prompt_ids", "teacher_chosen_ids", "teacher_rejected_ids")
"""Columns of the teacher's token ids."""

SPAN_COLUMNS = ("chosen_spans", "rejected_spans")
"""Columns of spans: their counts of the student's tokens, and of the teacher's, as in `Spans`."""

_ROWS_AT_ONCE = 64


def teacher_tokenizer(setting: str, source: ValueSource) -> Tokenize:
    """What divides text into the teacher's tokens: `server`, the teacher's server, or the tokenizer of a folder or hub
    id.

    Raises InvalidRequest when `server` is set and the source is none, or the tokenizer is not the teacher's.
    """
    if setting == "server":
        if not isinstance(source, ServerSource):
            raise InvalidRequest(
                "teacher_tokenizer is server, and the teacher's values come from a store: give the folder of the "
                "teacher's tokenizer"
            )
        return source.tokenize
    tokenizer = load_tokenizer(setting)
    teacher = teacher_of(source)
    ours = (vocabulary_digest(tokenizer.get_vocab()), template_digest(tokenizer.chat_template))
    theirs = (teacher.tokenizer_digest, teacher.chat_template_digest) if teacher else (None, None)
    for what, our, their in zip(("vocabulary", "chat template"), ours, theirs, strict=True):
        if teacher is not None and teacher.tokenizer_digest is not None and our != their:
            raise InvalidRequest(
                f"teacher_tokenizer {setting} has another {what} than teacher {teacher.name}; give the folder of that "
                "model's tokenizer"
            )
    return lambda items: [tokenize(tokenizer, item) for item in items]


def add_teacher_tokens(
    rows: Rows, name: str, student: PreTrainedTokenizerBase, divide: Tokenize, *, one_vocabulary: bool
) -> Rows:
    """Rows of the student's tokens, as TRL prepares them, with TEACHER_COLUMNS and SPAN_COLUMNS.

    `one_vocabulary` says that an id is the same token for both: then a completion that both divide into the same ids
    has one span for each token. Raises InvalidRequest, naming the row, for messages that are more than role and text,
    where the student's tokenizer divides a row otherwise than TRL has, and where a tokenizer or its chat template does
    not tell which text its tokens stand for; and whatever `divide` raises.
    """

    def add(batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        pairs = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        places = [f"data set {name}, row {index}" for index in indices]
        items = [text_item(pair, str(student.eos_token), place) for pair, place in zip(pairs, places, strict=True)]
        ours = [_students(student, item, pair, place) for item, pair, place in zip(items, pairs, places, strict=True)]
        columns: dict[str, list[Any]] = {column: [] for column in (*TEACHER_COLUMNS, *SPAN_COLUMNS)}
        for place, our, their in zip(places, ours, divide(items), strict=True):
            spans = _spans_of_sides(our, their, place, one_vocabulary=one_vocabulary)
            cells = [their.prompt_token_ids, *their.completions, *spans]
            for column, cell in zip(columns.values(), cells, strict=True):
                column.append(cell)
        return columns

    # A cached result would outlive a change of the server's tokenizer.
    fresh = {} if not hasattr(rows, "cache_files") else {"load_from_cache_file": False}
    return rows.map(add, with_indices=True, batched=True, batch_size=_ROWS_AT_ONCE, **fresh)


def spans_of(column: Sequence[Sequence[int]]) -> Spans:
    """The spans in a cell of SPAN_COLUMNS."""
    student, teacher = (np.asarray(counts, np.int64) for counts in column)
    return Spans(student, teacher)


def text_item(pair: Mapping[str, Any], eos_token: str, place: str) -> TextItem:
    """The text of a row as TRL prepared it, which put `eos_token` behind plain text. Raises InvalidRequest."""
    if pair.get("tools") or pair.get("chat_template_kwargs"):
        raise InvalidRequest(f"{place}: teacher_tokenizer takes no tools and no chat_template_kwargs; leave them out")
    sides = pair["chosen"], pair["rejected"]
    try:
        if isinstance(pair["prompt"], str):
            completions = [side.removesuffix(eos_token) for side in sides]
            return TextItem(prompt=pair["prompt"], completions=completions, append_eos=True)
        return TextItem(
            prompt=[_message(message, place) for message in pair["prompt"]],
            completions=[_answer(side, place) for side in sides],
        )
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        raise InvalidRequest(f"{place}: {first_mistake(mistakes)}") from error


def _message(message: Mapping[str, Any], place: str) -> Message:
    said = {key: value for key, value in message.items() if value is not None}
    if said.keys() != {"role", "content"} or not isinstance(said["content"], str):
        raise InvalidRequest(
            f"{place}: a message has {', '.join(said)}; with teacher_tokenizer it has role and content, which is text"
        )
    return Message(**said)


def _answer(side: Sequence[Mapping[str, Any]], place: str) -> str:
    messages = [_message(message, place) for message in side]
    if [message.role for message in messages] != ["assistant"]:
        raise InvalidRequest(
            f"{place}: a completion is messages of {', '.join(message.role for message in messages)}; with "
            "teacher_tokenizer it is one message of the assistant"
        )
    return messages[0].content


def _students(tokenizer: PreTrainedTokenizerBase, item: TextItem, pair: Mapping[str, Any], place: str) -> TokenizedItem:
    try:
        tokens = tokenize(tokenizer, item)
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: the student's tokenizer: {error}") from error
    if [tokens.prompt_token_ids, *tokens.completions] != [pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]]:
        raise InvalidRequest(
            f"{place}: the student's tokenizer divides prompt and completion otherwise than TRL has, and then nothing "
            "tells which text a token stands for"
        )
    return tokens


def _spans_of_sides(
    ours: TokenizedItem, theirs: TokenizedItem, place: str, *, one_vocabulary: bool
) -> list[list[list[int]]]:
    cells = []
    for side in range(2):
        if one_vocabulary and ours.completions[side] == theirs.completions[side]:
            spans = token_spans(len(ours.completions[side]))
        else:
            our, their = ours.ends[side], theirs.ends[side]
            if our is None or their is None:
                who = "student" if our is None else "teacher"
                raise InvalidRequest(
                    f"{place}: the {who}'s tokenizer or chat template does not tell which text its tokens stand for, "
                    "and teacher_tokenizer needs that"
                )
            spans = shared_spans(our, their)
        cells.append([spans.student_counts.tolist(), spans.teacher_counts.tolist()])
    return cells
