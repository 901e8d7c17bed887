"""The gate that every preference pair passes, wherever it comes from: TRL trains on it, or one line says why not."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset, Json, LargeList, List

from tvkd_shared.errors import InvalidRequest

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Dataset | IterableDataset

_NO_PROMPT = re.compile(
    r"(id|u?uid|key|index|idx|hash|source|origin|dataset|subset|split|domain|subreddit|url|link|file|path|license|name|"
    r"model|version|author|annotator|date|time|timestamp|category|categories|class|type|kind|tag|label|lang|language|"
    r"locale|status|quality|difficulty|level|score|rating|rank|reward|margin|method|style|format|meta|metadata|tool|"
    r"answer|response|output|completion|generation|target|truth|summary|preference|choice|winner|reason|rationale|"
    r"explanation|critique|feedback|note|annotation)s?"
)
"""Last words of the names of columns that are no prompt, in data sets that people share: they say where a pair comes
from, of what kind and how good it is, or what else was answered."""

_CHAT_AS_TEXT = re.compile(
    r"""\s*(\[\s*\{\s*(['"])(role|content|from|value)\2\s*:|\{\s*(['"])(role|from)\4\s*:[^:]*\4(content|value)\4\s*:)"""
)


def gate(rows: Rows, name: str, *, begins_with_prompt: bool = False) -> Rows:
    """The rows with columns prompt, chosen and rejected, each text or messages throughout, as TRL reads them.

    Without a prompt column the prompt is what chosen and rejected share at their beginning, as TRL finds it; so it is
    where a text prompt stands beside whole chats that begin with it. Plain text without a prompt column is refused
    where another column of text may be the prompt, by its name, or what is shared ends inside a word, unless
    `begins_with_prompt`: the user says that both begin with the prompt. Rows that stream are checked as they come.

    Raises InvalidRequest that names the first row at fault.
    """
    _, first = next(_read(rows, name), (0, {}))
    if not {"chosen", "rejected"} <= first.keys():
        seen = f"columns {', '.join(first)}" if first else "no rows"
        raise InvalidRequest(f"data set {name} has {seen}; needed are chosen, rejected and mostly prompt")
    if {"image", "images"} & first.keys():
        raise InvalidRequest(f"data set {name} has images, and the teacher has values for text only; leave images out")
    if (
        isinstance(rows, Dataset)
        and "prompt" in first
        and all(
            _begin_with_prompt(row) for _, row in _read(rows.select_columns(["prompt", "chosen", "rejected"]), name)
        )
    ):
        raise InvalidRequest(
            f"data set {name}: chosen and rejected both begin with the prompt, which would be read twice: "
            "--prompt-column none"
        )
    kind, prompt = _kind(first["chosen"]), _kind(first.get("prompt"))
    if kind is None:
        wanted = "text, or a list of messages with role and content"
        raise InvalidRequest(f"data set {name}, row 0: chosen is {_short(first['chosen'])}, not {wanted}")
    if "prompt" not in first and kind == "text" and not begins_with_prompt:
        _refuse_another_prompt(rows, first, name)
    # TRL takes any of these columns to learn whether rows are chats.
    rows = rows.remove_columns([column for column in ("messages", "completion") if column in first])
    if (kind, prompt) == ("messages", "text"):
        rows = _checked(rows, name, _prompt_beside_chats).remove_columns("prompt")
    if "prompt" not in first or (kind, prompt) == ("messages", "text"):
        rows = _checked(rows, name, lambda row: _unshared(row, kind, begins_with_prompt))
        rows = rows.map(_extracted)
    return _checked(rows, name, lambda row: _fault(row, ("prompt", "chosen", "rejected"), kind))


def _checked(rows: Rows, name: str, fault_of: Callable[[Row], str | None]) -> Rows:
    def check(row: Row, number: int) -> Row:
        if fault := fault_of(row):
            raise InvalidRequest(f"data set {name}, row {number}: {fault}")
        return row

    if isinstance(rows, IterableDataset):
        streamed: IterableDataset = rows.map(check, with_indices=True)
        return streamed
    columns = [column for column in ("prompt", "chosen", "rejected") if column in rows.column_names]
    for number, row in _read(rows.select_columns(columns), name):
        check(row, number)
    return rows


def _read(rows: Rows, name: str) -> Iterator[tuple[int, Row]]:
    """Number and content of each row. Bytes that are no text are noticed here: readers of files let them pass."""
    number = -1
    try:
        for number, row in enumerate(rows):
            yield number, row
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"data set {name}, row {number + 1}: its text is not UTF-8; save the file so") from error


def _begin_with_prompt(row: Row) -> bool:
    """Whether both completions are a text that goes on from the text of the prompt."""
    cells = [row[column] for column in ("prompt", "chosen", "rejected")]
    if not all(isinstance(cell, str) for cell in cells):
        return False
    prompt, *completions = (cell.strip() for cell in cells)
    return bool(prompt) and all(text.startswith(prompt) and text != prompt for text in completions)


def _refuse_another_prompt(rows: Rows, first: Row, name: str) -> None:
    # Rows that stream may know their columns by their cells alone.
    features = rows.features or Dataset.from_list([dict(first)], on_mixed_types="use_json").features
    found = [column for column, feature in features.items() if _has_text(feature) and _may_be_prompt(column)]
    if found:
        look, column = ("looks", found[0]) if len(found) == 1 else ("look", "COLUMN")
        raise InvalidRequest(
            f"data set {name} has no column prompt, and {', '.join(found)} {look} like it: --prompt-column {column} "
            "takes it, if it is text or messages, and --prompt-column none says that chosen and rejected both begin "
            "with the prompt"
        )


def _may_be_prompt(column: str) -> bool:
    """The last word of a name says what a column is, as in prompt_id; what names a completion, as in chosen_text."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]
    return not ({"chosen", "rejected"} & set(words) or (words and _NO_PROMPT.fullmatch(words[-1])))


def _has_text(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_has_text, feature.values()))
    if isinstance(feature, List | LargeList):
        return _has_text(feature.feature)
    return isinstance(feature, Json) or getattr(feature, "dtype", None) in ("string", "large_string")


def _unshared(row: Row, kind: str, begins_with_prompt: bool) -> str | None:
    """What is wrong with a row that has no prompt of its own."""
    if fault := _fault(row, ("chosen", "rejected"), kind):
        return fault
    split: dict[str, Any] = _extracted(row)
    prompt, answers = split["prompt"], (split["chosen"], split["rejected"])
    missing = "there is no prompt: --prompt-column names the column that has it"
    if kind == "messages":
        spoken = any(message["role"] != "system" for message in prompt)
        return None if spoken else f"chosen and rejected share no message but the system's, and {missing}"
    if not prompt.strip():
        return f"chosen and rejected share no beginning, and {missing}"
    if not begins_with_prompt and _is_letter(prompt[-1]) and any(_is_letter(answer[0]) for answer in answers if answer):
        return (
            f"what chosen and rejected share, {_short(prompt)}, ends inside a word, so it is hardly a prompt: "
            "--prompt-column names the column that has it, and none says that both begin with it"
        )
    return None


def _extracted(row: Row) -> dict[str, Any]:
    # TRL takes seconds to import, and mostly rows have a prompt.
    from trl.data_utils import extract_prompt  # noqa: PLC0415

    return dict(extract_prompt(dict(row)))


def _is_letter(character: str) -> bool:
    """Whether it is a digit or a letter of a script with capitals; many others put no space between words."""
    return character.isdigit() or character.lower() != character.upper()


def _prompt_beside_chats(row: Row) -> str | None:
    if fault := _fault(row, ("prompt",), "text") or _fault(row, ("chosen", "rejected"), "messages"):
        return fault
    for side in ("chosen", "rejected"):
        asked = next((message["content"] for message in row[side] if message["role"] != "system"), None)
        if not isinstance(asked, str) or asked.strip() != row["prompt"].strip():
            return f"prompt is text, and the messages of {side} do not begin with it; write the prompt as messages too"
    return None


def _fault(row: Row, columns: tuple[str, ...], kind: str) -> str | None:
    """What is wrong with the first of these cells that is not as it should be, of this kind."""
    for column in columns:
        if fault := _cell_fault(row[column], kind):
            return f"{column} {fault}"
    if kind == "messages" and "prompt" in columns:
        length = len(row["prompt"])
        if any(len(row[side]) > length and row[side][:length] == row["prompt"] for side in ("chosen", "rejected")):
            return "chosen or rejected begins with the prompt, which would be read twice: --prompt-column none"
    return None


def _cell_fault(cell: Any, kind: str) -> str | None:
    if _kind(cell) != kind:
        return f"is {_short(cell)}, not {kind}"
    if kind == "text" and _CHAT_AS_TEXT.match(cell):
        return f"is a chat written as text, {_short(cell)}; save messages as JSON lines or Parquet"
    if kind == "messages":
        for message in cell:
            if not _is_readable(message):
                return f"has a message whose content is {_short(message.get('content'))}, not text"
    says_something = cell.strip() if kind == "text" else any(map(_says, cell))
    return None if says_something else "is empty"


def _kind(cell: Any) -> str | None:
    if isinstance(cell, str):
        return "text"
    if isinstance(cell, list) and all(isinstance(part, dict) and isinstance(part.get("role"), str) for part in cell):
        return "messages"
    return None


def _is_readable(message: Row) -> bool:
    """Whether a message has text, parts of text, or calls of tools and no content."""
    content = message.get("content")
    if content is None:
        return bool(message.get("tool_calls")) and isinstance(message["tool_calls"], list)
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts)


def _says(message: Row) -> bool:
    content = message.get("content")
    texts = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
    return bool(message.get("tool_calls")) or any(text.strip() for text in texts)


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}…"
