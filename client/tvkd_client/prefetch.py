"""`tvkd prefetch`: fill a server's store with the values of a preference data set.

The store is the state: a run that was stopped is repeated, and what is stored already costs only a look-up.
"""

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import datasets
import numpy as np
from pydantic import Field, PositiveInt, SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tvkd_client.batches import FillCount
from tvkd_client.dataset import DatasetFlags
from tvkd_client.http import TeacherClient
from tvkd_client.preference_tokens import (
    check_vocabulary,
    load_tokenizer,
    tokenize_preferences,
)
from tvkd_client.token_rows import TOKEN_COLUMNS, measure, spelled
from tvkd_shared.errors import SequenceTooLong, TokenOutOfRange
from tvkd_shared.wire import TeacherInfo, TokenItem


class Prefetch(DatasetFlags, cli_prog_name="tvkd prefetch"):
    """Fill a server's store with the teacher's values of a preference data set. Repeat it at will: hits cost little."""

    server: str = Field(description="URL of `tvkd serve`, such as http://127.0.0.1:8077")
    tokenizer: str = Field(description="the student's tokenizer: a directory, or a hub id (only then the network)")
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

    def run(self) -> int:
        """Check everything that can be checked, then send. Returns 0 when done, 130 after Ctrl-C.

        Raises the errors of `tvkd_shared.errors`.
        """
        client = TeacherClient(
            self.server,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            teacher_id=self.teacher_id,
            in_flight=self.in_flight,
        )
        teacher = client.teacher()
        tokenizer = load_tokenizer(self.tokenizer)
        pairs = tokenize_preferences(self.pairs(), tokenizer, self.dataset)
        if not self.quiet:
            _say(f"the first of {len(pairs):,} pairs is\n{spelled(pairs[0], tokenizer)}")
        if teacher.tokenizer_digest is None:
            _say("the teacher was saved without a tokenizer: whether the vocabularies agree was not checked")
        elif not self.other_vocabulary:
            check_vocabulary(tokenizer, teacher, client, [pairs])
        pairs = _fitting(pairs, teacher, skip_too_long=self.skip_too_long)
        return _send(client, pairs, self.temperatures)


def _fitting(pairs: datasets.Dataset, teacher: TeacherInfo, *, skip_too_long: bool) -> datasets.Dataset:
    """The pairs that the teacher can read: all of them, or an error, unless those too long are to be left out."""
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


def _send(client: TeacherClient, pairs: datasets.Dataset, temperatures: list[float]) -> int:
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


def _items(pairs: datasets.Dataset) -> Iterator[TokenItem]:
    for row in pairs.select_columns(list(TOKEN_COLUMNS)):
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
