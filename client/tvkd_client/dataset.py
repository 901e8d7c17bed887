"""Preference data sets: files, folders, saved data sets, a hub id, or mixtures of them, as TRL's settings name them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import datasets
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments, get_dataset

from tvkd_client.rows import gate
from tvkd_client.training_settings import DataSettings
from tvkd_shared.errors import InvalidRequest

# datasets reports every load to a download counter, of local files too; users did not ask for that.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

_FORMATS: dict[tuple[str, str | None], re.Pattern[str]] = {
    ("json", None): re.compile(r"\.(json|jsonl|ndjson)(\.\w+)?$"),
    ("parquet", None): re.compile(r"\.parquet$"),
    ("arrow", None): re.compile(r"\.arrow$"),
    ("csv", ","): re.compile(r"\.csv(\.\w+)?$"),
    ("csv", "\t"): re.compile(r"\.tsv(\.\w+)?$"),
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CONFIGURATIONS = re.compile(r"vailable(?: configs)?: \[(.*)\]")
"""The names in what datasets says where none is named, or another."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a data set have the prompt and the completions."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None

    def of(self, rows: datasets.Dataset, name: str) -> datasets.Dataset:
        """The rows with TRL's names for these columns, checked by `gate`. Raises InvalidRequest."""
        begins_with_prompt = self.prompt == "none"
        given = (None if begins_with_prompt else self.prompt, self.chosen, self.rejected)
        names = {column: role for column, role in zip(given, ("prompt", "chosen", "rejected"), strict=True) if column}
        if lacking := names.keys() - set(rows.column_names):
            raise InvalidRequest(f"data set {name} has no column {', '.join(lacking)}; it has {_columns(rows)}")
        replaced = {*names.values(), *(["prompt"] if begins_with_prompt else [])} - names.keys()
        rows = rows.remove_columns([column for column in rows.column_names if column in replaced])
        return gate(rows.rename_columns(names), name, begins_with_prompt=begins_with_prompt)


@dataclass
class DataArguments(DataSettings, ScriptArguments):
    """TRL's settings of a data set, and which of its columns are which."""

    @property
    def columns(self) -> Columns:
        return Columns(self.prompt_column, self.chosen_column, self.rejected_column)


def load_preferences(
    path_or_name: str, split: str | None = None, config: str | None = None, columns: Columns = Columns()
) -> datasets.Dataset:
    """Pairs from JSON, JSON lines, CSV, Parquet or Arrow (a file, a folder, a glob), `save_to_disk`, or else the hub.

    Only a name that is no file of this machine is looked up on the hub. `config` is a configuration of a folder or of
    the hub.

    Raises InvalidRequest when nothing is there, when the split is unknown or has to be named, and for columns and rows
    that do not pass `gate`.
    """
    with _reading(f"data set {path_or_name}", "dataset_config (--dataset-config)"):
        loaded = _load(path_or_name, split, config)
    rows = _one_split(loaded, path_or_name, split)
    if rows.info.builder_name == "csv":
        _refuse_shifted(rows, path_or_name)
    return columns.of(rows, path_or_name)


def training_data(
    data: DataArguments, mixture: DatasetMixtureConfig, *, evaluation: bool
) -> dict[str, datasets.Dataset]:
    """What TRL's settings name: the pairs to train on under "train", and with `evaluation` more under "eval".

    A mixture is cut into the two by NumPy's global random state, as in TRL; seed it first.

    Raises InvalidRequest for settings that do not go together, and as `load_preferences` does.
    """
    if data.dataset_streaming or mixture.streaming:
        raise InvalidRequest("streaming is not served here; load the data set whole, or use TVKDTrainer in Python")
    if mixture.datasets:
        if data.dataset_name:
            raise InvalidRequest("datasets and dataset_name are both set; keep one")
        mixed = _mixed(mixture)
        if evaluation and "test" not in mixed:
            raise InvalidRequest("eval_strategy needs a test split of datasets; set test_split_size")
        wanted = {"train": "train", "eval": "test"} if evaluation else {"train": "train"}
        return {use: data.columns.of(mixed[split], f"datasets ({split})") for use, split in wanted.items()}
    if not data.dataset_name:
        raise InvalidRequest("dataset_name is not set: a JSON lines, CSV or Parquet file, a folder or a hub id")
    # A data set saved as one split has no name for it, and "train" is TRL's default, not the user's word.
    unnamed = (Path(data.dataset_name) / "state.json").exists() and data.dataset_train_split == "train"
    splits = {"train": None if unnamed else data.dataset_train_split}
    if evaluation:
        splits["eval"] = data.dataset_test_split
    return {
        use: load_preferences(data.dataset_name, split, data.dataset_config, data.columns)
        for use, split in splits.items()
    }


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub's: `name` or `owner/name`."""
    return _HUB_ID.fullmatch(name) is not None


@contextmanager
def _reading(what: str, configuration: str = "") -> Iterator[None]:
    """Says in one line why what cannot be read. `configuration` is the setting that names one, where it has several."""
    try:
        yield
    except InvalidRequest:
        raise
    # Builders raise anything from OSError to DatasetGenerationError; all of them mean that this source does not read.
    except Exception as error:
        said = str(error.__cause__ or error).strip()
        reason = said.partition("\n")[0] or type(error).__name__
        if isinstance(error, StopIteration) or reason.endswith("corresponds to no data!"):
            reason = "it has no rows"
        elif names := _CONFIGURATIONS.search(said):
            listed = names[1].replace("'", "")
            reason = f"{configuration} has to be one of its configurations, {listed}"
        raise InvalidRequest(f"{what} cannot be read: {reason}") from error


def _mixed(mixture: DatasetMixtureConfig) -> datasets.DatasetDict:
    """TRL's mixture, whose entries may name a file or a glob where TRL wants a builder and data_files."""
    for entry in mixture.datasets:
        name = entry.path
        if files := _files(name):
            entry.path, options = _builder(files)
            entry.data_files = options["data_files"]
            if options.get("sep") == "\t":
                raise InvalidRequest(
                    f"datasets: {name} has tabs between fields, which a mixture does not read; save CSV"
                )
        # Each is read alone first, so that a fault names its entry; what was read is kept for the mixture.
        with _reading(f"datasets: {name}", "name in its entry"):
            rows = get_dataset(DatasetMixtureConfig([replace(entry, fraction=None)]))["train"]
        if entry.path == "csv":
            _refuse_shifted(rows, name)
    with _reading("datasets"):
        return get_dataset(mixture)


def _refuse_shifted(rows: datasets.Dataset, name: str) -> None:
    """Refuse CSV whose lines have more fields than the header: pandas then shifts every column by one."""
    if "__index_level_0__" in rows.column_names:
        raise InvalidRequest(
            f"data set {name}: its lines have more fields than its header has names, so that columns are shifted; put "
            "fields with a separator in them into quotes"
        )


def _load(name: str, split: str | None, config: str | None) -> datasets.Dataset | datasets.DatasetDict:
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(path)
            if config is not None:
                raise InvalidRequest(f"data set {name} was saved and has no configurations; leave out {config}")
            if split is not None and isinstance(saved, datasets.Dataset):
                raise InvalidRequest(f"data set {name} was saved as a single split; leave out {split!r}")
            return saved
        return datasets.load_dataset(str(path), config, split=split)
    if files := _files(name):
        if config is not None:
            raise InvalidRequest(f"data set {name} is a file and has no configurations; leave out {config}")
        builder, options = _builder(files)
        return datasets.load_dataset(builder, split=split, **options)
    if any(pattern.search(name) for pattern in _FORMATS.values()) or not is_hub_id(name):
        raise InvalidRequest(f"no data set at {name}: there is no such file or folder, and the name is not a hub id")
    return datasets.load_dataset(name, config, split=split)


def _files(name: str) -> list[str]:
    path = Path(name).expanduser()
    return [str(path)] if path.is_file() else [] if path.is_dir() else sorted(glob(str(path), recursive=True))  # noqa: PTH207 (absolute globs)


def _builder(files: list[str]) -> tuple[str, dict[str, Any]]:
    """The builder of datasets that reads these files, and its options."""
    for (builder, separator), pattern in _FORMATS.items():
        if all(pattern.search(file) for file in files):
            return builder, {"data_files": {"train": files}} | ({"sep": separator} if separator else {})
    raise InvalidRequest(f"{files[0]} is not JSON, JSON lines, CSV or Parquet by its name (or the files are mixed)")


def _one_split(loaded: datasets.Dataset | datasets.DatasetDict, name: str, split: str | None) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        reason = f"has no split {split!r}" if split else "has several splits"
        raise InvalidRequest(f"data set {name} {reason}; name one of {', '.join(loaded)}")
    return loaded[split]


def _columns(rows: datasets.Dataset) -> str:
    return ", ".join(rows.column_names)
