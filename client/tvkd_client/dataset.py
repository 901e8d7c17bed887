"""Preference data sets: files, folders, saved data sets or a hub id, with the columns that TRL takes."""

import re
from glob import glob
from pathlib import Path
from typing import Any

import datasets

from tvkd_shared.errors import InvalidRequest

# datasets reports every load to a download counter, of local files too; users did not ask for that.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

_COLUMNS = ("prompt", "chosen", "rejected")
_FORMATS = {"json": re.compile(r"\.(json|jsonl|ndjson)(\.\w+)?$"), "parquet": re.compile(r"\.parquet$")}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_preferences(path_or_name: str, split: str | None = None) -> datasets.Dataset:
    """Pairs from JSON, JSON lines or Parquet (a file, a folder, a glob), `save_to_disk`, or else the hub.

    Columns chosen and rejected, and prompt unless both begin with it; each plain text or a list of messages. Only a
    name that is no file of this machine is looked up on the hub.

    Raises InvalidRequest when nothing is there, when the split is unknown or has to be named, when the columns do not
    fit, and for the first row with an empty one.
    """
    try:
        loaded = _load(path_or_name, split)
    except InvalidRequest:
        raise
    # Builders raise anything from OSError to DatasetGenerationError; all of them mean that this source does not read.
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise InvalidRequest(f"data set {path_or_name} cannot be read: {reason or type(error).__name__}") from error
    dataset = _one_split(loaded, path_or_name, split)
    _check_columns(dataset, path_or_name)
    _check_rows(dataset, path_or_name)
    return dataset


def _load(name: str, split: str | None) -> datasets.Dataset | datasets.DatasetDict:
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(path)
            if split is not None and isinstance(saved, datasets.Dataset):
                raise InvalidRequest(f"data set {name} was saved as a single split; leave out {split!r}")
            return saved
        return datasets.load_dataset(str(path), split=split)
    files = [str(path)] if path.is_file() else sorted(glob(str(path), recursive=True))  # noqa: PTH207 (absolute globs)
    if files:
        return datasets.load_dataset(_format(files), data_files={"train": files}, split=split)
    if any(pattern.search(name) for pattern in _FORMATS.values()) or not is_hub_id(name):
        raise InvalidRequest(f"no data set at {name}: there is no such file or folder, and the name is not a hub id")
    return datasets.load_dataset(name, split=split)


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub's: `name` or `owner/name`."""
    return _HUB_ID.fullmatch(name) is not None


def _format(files: list[str]) -> str:
    for kind, pattern in _FORMATS.items():
        if all(pattern.search(file) for file in files):
            return kind
    raise InvalidRequest(f"{files[0]} is neither JSON, JSON lines nor Parquet by its name (or the files are mixed)")


def _one_split(loaded: datasets.Dataset | datasets.DatasetDict, name: str, split: str | None) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        reason = f"has no split {split!r}" if split else "has several splits"
        raise InvalidRequest(f"data set {name} {reason}; name one of {', '.join(loaded)}")
    return loaded[split]


def _check_columns(dataset: datasets.Dataset, name: str) -> None:
    seen = ", ".join(dataset.column_names)
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        raise InvalidRequest(f"data set {name} has columns {seen}; needed are chosen, rejected and mostly prompt")
    if {"image", "images"} & set(dataset.column_names):
        raise InvalidRequest(f"data set {name} has columns {seen}; the teacher reads text, not images")
    if len(dataset) == 0:
        raise InvalidRequest(f"data set {name} has no rows")


def _check_rows(dataset: datasets.Dataset, name: str) -> None:
    """Every row has text or messages in each column, of one kind throughout. Raises InvalidRequest naming the row."""
    columns = [column for column in _COLUMNS if column in dataset.column_names]
    first: str | None = None
    for number, row in enumerate(dataset.select_columns(columns)):
        for column in columns:
            kind = _kind(row[column])
            first = first or kind
            if kind is None or kind != first:
                wanted = first or "text, or a list of messages with role and content"
                raise InvalidRequest(f"data set {name}, row {number}: {column} is {_short(row[column])}, not {wanted}")
            if not row[column]:
                raise InvalidRequest(f"data set {name}, row {number}: {column} is empty")


def _kind(cell: Any) -> str | None:
    if isinstance(cell, str):
        return "text"
    if isinstance(cell, list) and all(_is_message(message) for message in cell):
        return "messages"
    return None


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= message.keys()


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}…"
