"""`tvkd prefetch`: fill a store with the values of a preference data set, through a server or with a model's folder.

The store is the state: a run that was stopped is repeated, and what is stored already costs only a look-up.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args

import numpy as np
from pydantic import Field, PositiveInt, SecretStr, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tvkd_client.batches import FillCount
from tvkd_client.dataset_flags import DatasetFlags
from tvkd_client.http import TeacherClient
from tvkd_client.own_server import running_server
from tvkd_shared.errors import InvalidRequest, SequenceTooLong, TeacherMismatch, TokenOutOfRange
from tvkd_shared.wire import TeacherInfo, TokenItem

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

# Modules that import datasets, transformers or TRL are imported in the functions that need them: `--help` and a wrong
# port are answered before.


class Fill(NamedTuple):
    """One model's values at some temperatures: through a server, or else with a model's folder into a store."""

    what: str
    temperatures: list[float]
    server: str | None
    model: str | None
    store: str | None
    teacher_id: str | None


class Prefetch(DatasetFlags, cli_prog_name="tvkd prefetch"):
    """Fill a store with a model's values of a preference data set. Repeat it at will: hits cost little."""

    alternatives = frozenset({"server", "model", "config"})

    server: str | None = Field(None, description="URL of `tvkd serve`, such as http://127.0.0.1:8077")
    model: str | None = Field(
        None,
        description="in place of a server: the folder of the model or of a PEFT adapter; a server of its own runs "
        "it, and ends with it. Settings of `tvkd serve` are taken from the environment, such as TVKD_ENGINE=vllm",
    )
    store: str | None = Field(None, description="with --model: the store to fill, a folder or s3://…")
    config: str | None = Field(
        None, description="in place of all: a file of `tvkd train`; fills what that training will read, of every split"
    )
    models: bool = Field(False, description="with --config: run the models of roles whose place is a store")
    tokenizer: str | None = Field(
        None, description="the student's tokenizer: a directory, or a hub id (only then the network)"
    )
    temperatures: Annotated[list[float], Field(min_length=1)] = Field(
        [1.0], description="temperatures of the values, such as 1.0,2.0; 1.0 is always among them"
    )
    teacher_id: str | None = Field(None, description="refuse to go on when the server runs another teacher")
    api_key: SecretStr | None = Field(
        None, description="bearer token of the server; prefer the variable, flags show in `ps`"
    )
    skip_too_long: bool = Field(
        False, description="leave out pairs longer than the teacher's longest sequence, and say how many"
    )
    other_vocabulary: bool = Field(
        False,
        description="accept a tokenizer to which ids of the data are other tokens than to the teacher's",
    )
    in_flight: PositiveInt = Field(8, description="requests under way at once: enough to keep the teacher's batch full")
    quiet: bool = Field(False, description="do not show the first pair before anything is sent")

    @model_validator(mode="after")
    def _check_what(self) -> "Prefetch":
        if (self.server is not None) + (self.model is not None) + (self.config is not None) != 1:
            raise ValueError("give --server, --model or --config, one of them")
        if self.model is not None and self.store is None:
            raise ValueError("--model needs --store, the store to fill")
        if self.config is None and (self.dataset is None or self.tokenizer is None):
            raise ValueError("--dataset and --tokenizer are needed")
        if self.config is not None and (self.dataset or self.tokenizer or self.split or self.temperatures != [1.0]):
            raise ValueError("--config names data, tokenizer and temperatures; leave out the flags for them")
        return self

    def run(self) -> int:
        """Check everything that can be checked, then send. Returns 0 when done, 130 after Ctrl-C.

        Raises the errors of `tvkd_shared.errors`.
        """
        if self.config is not None:
            fills, name, splits, self.other_vocabulary = of_training(self.config, models=self.models)
        else:
            fills, name, splits = [self._only_fill()], str(self.tokenizer), lambda: {str(self.dataset): self.pairs()}
        for fill in fills:
            if fill.server is not None:  # before the data are read, so that a wrong port is known at once
                self._client(fill.server).teacher()
        import datasets  # noqa: PLC0415

        from tvkd_client.preference_tokens import are_chats, load_tokenizer, tokenize_preferences  # noqa: PLC0415
        from tvkd_client.token_rows import TOKEN_COLUMNS, spelled  # noqa: PLC0415

        tokenizer, tokens, chats = load_tokenizer(name), [], False
        for split, rows in splits().items():
            whole = tokenize_preferences(rows, tokenizer, split)
            chats = chats or are_chats(whole)
            tokens.append(whole.select_columns(list(TOKEN_COLUMNS)))
            if not self.quiet:
                _say(f"the first of {len(tokens[-1]):,} pairs of {split} is\n{spelled(tokens[-1][0], tokenizer)}")
        pairs = datasets.concatenate_datasets(tokens)
        return next(filter(None, (self._fill(fill, pairs, tokenizer, chats=chats) for fill in fills)), 0)

    def _only_fill(self) -> Fill:
        store = self.store if self.model else None
        return Fill("", self.temperatures, self.server, self.model, store, self.teacher_id)

    def _client(self, url: str) -> TeacherClient:
        api_key = self.api_key.get_secret_value() if self.api_key else None
        return TeacherClient(url, api_key=api_key, in_flight=self.in_flight)

    def _fill(self, fill: Fill, pairs: "datasets.Dataset", tokenizer: "PreTrainedTokenizerBase", *, chats: bool) -> int:
        from tvkd_client.preference_tokens import check_vocabulary, other_template  # noqa: PLC0415

        with _server(fill) as url:
            client = self._client(url)
            teacher = client.teacher()
            if fill.teacher_id not in (None, teacher.id, teacher.name):
                raise TeacherMismatch(f"{url} has teacher {teacher.name} ({teacher.id}), not {fill.teacher_id}")
            if fill.what:
                _say(f"{fill.what}: {teacher.name}, id {teacher.id}")
            if teacher.tokenizer_digest is None:
                _say("the teacher was saved without a tokenizer: whether the vocabularies agree was not checked")
            elif not self.other_vocabulary:
                check_vocabulary(tokenizer, teacher, client, [pairs])
            if chats and (warning := other_template(tokenizer, teacher)):
                _say(warning)
            return _send(client, _fitting(pairs, teacher, skip_too_long=self.skip_too_long), fill.temperatures)


@contextmanager
def _server(fill: Fill) -> Iterator[str]:
    """The URL of the server of a fill; where there is none, one runs for as long."""
    if fill.server is not None:
        yield fill.server
        return
    with (
        tempfile.TemporaryDirectory(prefix="tvkd-") as folder,
        running_server(str(fill.model), str(fill.store), Path(folder) / "server.log") as server,
    ):
        yield server.url


Splits = Callable[[], "dict[str, datasets.Dataset]"]
"""Reads the data sets, by the name of their split."""


def of_training(file: str, *, models: bool) -> tuple[list[Fill], str, Splits, bool]:
    """What a training file's run will read: its fills, tokenizer and splits, and its other_vocabulary.

    Raises InvalidRequest for a role whose place is a store, unless `models` is set and the file names its model.
    """
    from tvkd_client.roles import Role  # noqa: PLC0415
    from tvkd_client.source import is_server  # noqa: PLC0415
    from tvkd_client.train import pairs_of, parse  # noqa: PLC0415

    script, training, model, mixture = parse(["--config", file])
    student = str(model.model_name_or_path)
    checkpoints = {"teacher": training.teacher_model, "teacher_reference": training.teacher_reference_model}
    fills = []
    for role in get_args(Role):
        place, checkpoint = getattr(training, role), checkpoints.get(role, student)
        if not training.reads(role) or place is None:
            continue
        if not is_server(place) and (not models or checkpoint is None):
            lacking = f"set {role}_model" if models else "add --models to run its model"
            raise InvalidRequest(f"{role}: {place} is a store, which a model has to fill; {lacking}")
        server, store = (place, None) if is_server(place) else (None, place)
        temperatures = list(training.temperatures_of(role))
        fills.append(Fill(role, temperatures, server, checkpoint, store, getattr(training, f"{role}_id")))
    if not fills:
        raise InvalidRequest(f"{file} names no place of values that its objective reads; set teacher, or reference")
    return fills, student, partial(pairs_of, script, training, mixture), training.other_vocabulary


def _fitting(pairs: "datasets.Dataset", teacher: TeacherInfo, *, skip_too_long: bool) -> "datasets.Dataset":
    """The pairs that the teacher can read: all of them, or an error, unless those too long are to be left out."""
    from tvkd_client.token_rows import measure  # noqa: PLC0415

    lengths_N3, largest = measure(pairs)
    if largest >= teacher.vocab_size:
        raise TokenOutOfRange(
            f"the data set has token id {largest}; the teacher's are 0 … {teacher.vocab_size - 1}: "
            "use the teacher's tokenizer"
        )
    longest_N = lengths_N3[:, 0] + lengths_N3[:, 1:].max(1)
    too_long_N = longest_N > teacher.longest_sequence
    if not too_long_N.any():
        return pairs
    limit = f"the teacher's {teacher.longest_sequence:,} tokens"
    summary = f"{too_long_N.sum():,} of {len(pairs):,} pairs are longer than {limit}"
    row = int(longest_N.argmax())
    if not skip_too_long or too_long_N.all():
        raise SequenceTooLong(
            f"{summary} (row {row} has {longest_N[row]:,}); shorten them, or leave them out here and in training: "
            "--skip-too-long"
        )
    _say(f"{summary} and are left out: the trainer will not find their values")
    return pairs.select(np.flatnonzero(~too_long_N))


def _send(client: TeacherClient, pairs: "datasets.Dataset", temperatures: list[float]) -> int:
    done, began = FillCount(0, 0, 0), time.monotonic()
    try:
        with _progress() as bar:
            task = bar.add_task("", total=2 * len(pairs), rate="", hits="")

            def show(answered: FillCount) -> None:
                nonlocal done
                done += answered
                rate = done.tokens / (time.monotonic() - began)
                bar.update(task, completed=done.sequences, rate=f"{rate:,.0f}", hits=f"{done.hits:,}")

            client.fill(_items(pairs), temperatures, show)
    except KeyboardInterrupt:
        _say(f"stopped after {done.sequences:,} of {2 * len(pairs):,} sequences; they are stored, run again to go on")
        return 130
    print(
        f"{done.sequences:,} sequences, {done.tokens:,} tokens: {done.hits:,} hits, {done.computed:,} computed in "
        f"{time.monotonic() - began:.1f} s; the store holds {client.store().bytes_per_token:.1f} bytes a token"
    )
    return 0


def _items(pairs: "datasets.Dataset") -> Iterator[TokenItem]:
    for row in pairs:
        yield TokenItem(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]])


def _progress() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sequences  {task.fields[rate]} tokens/s  {task.fields[hits]} hits"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _say(line: str) -> None:
    print(f"tvkd prefetch: {line}", file=sys.stderr)
