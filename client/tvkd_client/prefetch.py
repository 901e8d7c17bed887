"""`tvkd prefetch`: fill a store with the values of a preference data set, through a server or with a model's folder.

The store is the state: a run that was stopped is repeated, and what is stored already costs only a look-up.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt, SecretStr, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tvkd_client.batches import FillCount
from tvkd_client.dataset_flags import DatasetFlags
from tvkd_client.fills import Fill, Work, of_training
from tvkd_client.http import TeacherClient
from tvkd_client.own_server import running_server
from tvkd_client.train_command import servers
from tvkd_shared.errors import SequenceTooLong, TeacherMismatch, TokenOutOfRange
from tvkd_shared.wire import TeacherInfo, TokenItem

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from tvkd_client.teacher_tokens import TeacherTokenizer

# Modules that import datasets, transformers or TRL are imported in the functions that need them: `--help` and a wrong
# port are answered before.


class Prefetch(DatasetFlags, cli_prog_name="tvkd prefetch"):
    """Fill a store with a model's values of a preference data set. Repeat it at will: hits cost little."""

    instead_of: ClassVar[dict[str, list[str]]] = {
        "server": ["model", "config", "store"],
        "model": ["server", "config"],
        "config": ["server", "model", "store", "teacher_id", "tokenizer", "temperatures", *DatasetFlags.model_fields],
    }

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
    quiet: bool = Field(False, description="say nothing before anything is sent, and do not show the first pair")

    @model_validator(mode="after")
    def _check_what(self) -> "Prefetch":
        if (self.server is not None) + (self.model is not None) + (self.config is not None) != 1:
            raise ValueError("give --server, --model or --config, one of them")
        if self.model is not None and self.store is None:
            raise ValueError("--model needs --store, the store to fill")
        if self.server is not None and self.store is not None:
            raise ValueError("--store is for --model; a server fills its own store")
        if self.config is None and (self.dataset is None or self.tokenizer is None):
            raise ValueError("--dataset and --tokenizer are needed")
        if self.config is not None and (unread := self.model_fields_set.intersection(self.instead_of["config"])):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unread))
            raise ValueError(f"--config names data, models and places in its file; leave out {flags}")
        return self

    def run(self) -> int:
        """Check everything that can be checked, then send. Returns 0 when done, 130 after Ctrl-C.

        Raises the errors of `tvkd_shared.errors`.
        """
        # Servers are asked before TRL is imported and the data are read, so that a wrong port is known at once.
        urls = [self.server] if self.config is None else [url for _, url in servers(["--config", self.config])]
        answering = [f"{self._client(url).teacher().name} at {url}" for url in dict.fromkeys(filter(None, urls))]
        if not self.quiet:
            _say(f"reading {self.config or self.dataset}" + (f" for {' and '.join(answering)}" if answering else ""))
        if self.config is not None:
            work = of_training(self.config, models=self.models)
            self.other_vocabulary |= work.other_vocabulary
        else:
            work = Work([self._only_fill()], str(self.tokenizer), lambda: {str(self.dataset): self.pairs()})
        import datasets  # noqa: PLC0415

        from tvkd_client.completions import TEACHER_COLUMNS  # noqa: PLC0415
        from tvkd_client.preference_tokens import are_chats, load_tokenizer, tokenize_preferences  # noqa: PLC0415
        from tvkd_client.teacher_tokens import add_teacher_tokens  # noqa: PLC0415
        from tvkd_client.token_rows import TOKEN_COLUMNS, spelled  # noqa: PLC0415

        tokenizer, tokens, chats = load_tokenizer(work.tokenizer), [], False
        teachers = self._teacher_tokenizer(work)
        for split, rows in work.splits().items():
            made = tokenize_preferences(rows, tokenizer, split)
            chats = chats or are_chats(made)
            if not self.quiet:
                _say(f"the first of {len(made):,} pairs of {split} is\n{spelled(made[0], tokenizer)}")
            if teachers is not None:
                made = add_teacher_tokens(made, split, tokenizer, teachers)
            tokens.append(made.select_columns([*TOKEN_COLUMNS, *(TEACHER_COLUMNS if teachers else ())]))
        pairs = datasets.concatenate_datasets(tokens)
        return next(filter(None, (self._fill(fill, pairs, tokenizer, teachers, chats=chats) for fill in work.fills)), 0)

    def _teacher_tokenizer(self, work: Work) -> "TeacherTokenizer | None":
        from tvkd_client.source import ServerSource  # noqa: PLC0415
        from tvkd_client.teacher_tokens import teacher_tokenizer  # noqa: PLC0415

        fill = next((fill for fill in work.fills if fill.what == "teacher"), None)
        if work.teacher_tokenizer is None or fill is None:
            return None
        source = ServerSource(fill.server, api_key=self._api_key()) if fill.server else None
        return teacher_tokenizer(work.teacher_tokenizer, source)

    def _only_fill(self) -> Fill:
        store = self.store if self.model else None
        return Fill("", self.temperatures, self.server, self.model, store, self.teacher_id)

    def _api_key(self) -> str | None:
        return self.api_key.get_secret_value() if self.api_key else None

    def _client(self, url: str) -> TeacherClient:
        return TeacherClient(url, api_key=self._api_key(), in_flight=self.in_flight)

    def _fill(
        self,
        fill: Fill,
        pairs: "datasets.Dataset",
        tokenizer: "PreTrainedTokenizerBase",
        teachers: "TeacherTokenizer | None",
        *,
        chats: bool,
    ) -> int:
        from tvkd_client.completions import TEACHER_COLUMNS  # noqa: PLC0415
        from tvkd_client.preference_tokens import NO_TOKENIZER, check_vocabulary, other_template  # noqa: PLC0415
        from tvkd_client.token_rows import TOKEN_COLUMNS  # noqa: PLC0415

        own = teachers if fill.what != "reference" else None
        if own is not None:
            renamed = dict(zip(TEACHER_COLUMNS, TOKEN_COLUMNS, strict=True))
            pairs = pairs.select_columns(list(TEACHER_COLUMNS)).rename_columns(renamed)
        with _server(fill) as url:
            client = self._client(url)
            teacher = client.teacher()
            if fill.teacher_id not in (None, teacher.id, teacher.name):
                raise TeacherMismatch(f"{url} has teacher {teacher.name} ({teacher.id}), not {fill.teacher_id}")
            if fill.what:
                _say(f"{fill.what}: {teacher.name}, id {teacher.id}")
            if teacher.tokenizer_digest is None:
                _say(NO_TOKENIZER)
            elif own is not None and not self.other_vocabulary:
                own.check(teacher, template=fill.what == "teacher")
            elif not self.other_vocabulary:
                check_vocabulary(tokenizer, teacher, client, [pairs])
            if chats and own is None and (warning := other_template(tokenizer, teacher)):
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
