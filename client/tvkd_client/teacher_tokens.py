"""Pairs as the teacher's tokens, where its tokenizer is not the student's, and the spans that both have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from tvkd_client.completions import SPAN_COLUMNS, TEACHER_COLUMNS
from tvkd_client.preference_tokens import load_tokenizer
from tvkd_client.rows import Rows
from tvkd_client.source import ServerSource, ValueSource
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.spans import shared_spans, token_spans
from tvkd_shared.text import TokenizedItem, tokenize
from tvkd_shared.vocabulary import template_digest, vocabulary_digest
from tvkd_shared.wire import Message, TeacherInfo, TextItem, first_mistake

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TeacherTokenizer:
    """The tokenizer of a teacher: what divides text into its tokens, and the digests of its vocabulary and template.

    `name` is the setting: `server`, or a folder or hub id.
    """

    name: str
    divide: Callable[[Sequence[TextItem]], list[TokenizedItem]]
    vocabulary: str | None
    template: str | None

    def check(self, model: TeacherInfo | None, *, template: bool = True) -> None:
        """Raises InvalidRequest when the model is known to have another vocabulary or, with `template`, template."""
        if model is None or model.tokenizer_digest is None:
            return
        ours, theirs = (self.vocabulary, self.template), (model.tokenizer_digest, model.chat_template_digest)
        for what, our, their in zip(("vocabulary", "chat template")[: 1 + template], ours, theirs, strict=False):
            if our != their:
                raise InvalidRequest(
                    f"teacher_tokenizer {self.name} has another {what} than model {model.name}; give the folder of "
                    "that model's tokenizer"
                )


def teacher_tokenizer(setting: str, source: ValueSource | None) -> TeacherTokenizer:
    """The tokenizer that a setting names: `server`, the teacher's server, or the tokenizer of a folder or hub id.

    Raises InvalidRequest when `server` is set and the source is none, or there is no tokenizer in the folder.
    """
    if setting == "server":
        if not isinstance(source, ServerSource):
            raise InvalidRequest(
                "teacher_tokenizer is server, and the teacher's values do not come from one: give the folder of the "
                "teacher's tokenizer"
            )
        teacher = source.client.teacher()
        return TeacherTokenizer(setting, source.client.tokenize, teacher.tokenizer_digest, teacher.chat_template_digest)
    tokenizer = load_tokenizer(setting)
    return TeacherTokenizer(
        setting,
        lambda items: [tokenize(tokenizer, item) for item in items],
        vocabulary_digest(tokenizer.get_vocab()),
        template_digest(tokenizer.chat_template),
    )


def add_teacher_tokens(
    rows: Rows, name: str, student: PreTrainedTokenizerBase, teacher: TeacherTokenizer, *, processes: int | None = None
) -> Rows:
    """Rows of the student's tokens, as TRL prepares them, with TEACHER_COLUMNS and SPAN_COLUMNS.

    `processes` share the work where the rows do not stream.

    Where both have one vocabulary, a completion that both divide into the same ids has one span for each token. Raises
    InvalidRequest, naming the row, for messages that are more than role and text, where the student's tokenizer divides
    a row otherwise than TRL has, and where a tokenizer or its chat template does not tell which text its tokens stand
    for; and whatever `teacher.divide` raises.
    """
    one_vocabulary = teacher.vocabulary == vocabulary_digest(student.get_vocab())

    def add(batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        pairs = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        places = [f"data set {name}, row {index}" for index in indices]
        items = [text_item(pair, str(student.eos_token), place) for pair, place in zip(pairs, places, strict=True)]
        ours = [_students(student, item, pair, place) for item, pair, place in zip(items, pairs, places, strict=True)]
        columns: dict[str, list[Any]] = {column: [] for column in (*TEACHER_COLUMNS, *SPAN_COLUMNS)}
        for place, our, their in zip(places, ours, teacher.divide(items), strict=True):
            spans = _spans_of_sides(our, their, place, one_vocabulary=one_vocabulary)
            cells = [their.prompt_token_ids, *their.completions, *spans]
            for column, cell in zip(columns.values(), cells, strict=True):
                column.append(cell)
        return columns

    return rows.map(add, with_indices=True, batched=True, batch_size=_ROWS_AT_ONCE, **_options(rows, processes))


def with_whole_spans(rows: Rows, name: str, max_length: int, say: Callable[[str], None]) -> Rows:
    """The rows of which `max_length` leaves at least one span of each completion. `say` is told how many it drops.

    Raises InvalidRequest when it leaves none.
    """

    def has_spans(row: Mapping[str, Any]) -> bool:
        kept = max_length - len(row["prompt_ids"])
        return all(row[column][0][0] <= kept for column in SPAN_COLUMNS)

    left = rows.filter(has_spans, **_options(rows, None))
    if isinstance(rows, Dataset) and len(left) < len(rows):
        dropped = f"{len(rows) - len(left):,} of {len(rows):,} pairs of {name}"
        why = f"max_length {max_length} leaves no token of a completion that student and teacher both end"
        if not len(left):
            raise InvalidRequest(f"{why}, in any of {len(rows):,} pairs of {name}; raise it")
        say(f"{why}, in {dropped}, which are dropped")
    return left


def _options(rows: Rows, processes: int | None) -> dict[str, Any]:
    """Options of `map` and `filter`: a cached result would outlive a change of the server's tokenizer, or of tvkd."""
    return {"load_from_cache_file": False, "num_proc": processes} if isinstance(rows, Dataset) else {}


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
