"""`tvkd store ACTION`: each action has a settings model, from which its flags and `--help` are made."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import Field, PositiveInt
from rich.console import Console
from rich.progress import track

from tvkd.store import archive, info
from tvkd_client.dataset_flags import DatasetFlags
from tvkd_shared.dispatch import Entry, dispatch
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.settings import Command
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.compact import SEGMENT_BYTES, compact
from tvkd_shared.store.gc import GRACE_SECONDS, collect
from tvkd_shared.store.verify import verify

Item = TypeVar("Item")


class Action(Command):
    """What every action of `tvkd store` has in common."""

    store: str = Field(description="the store: a directory, or s3://…, gs://…, az://…")
    json_: bool = Field(False, alias="json", description="print JSON, for programs")

    def tell(self, result: Any, line: str) -> None:
        """Print the result as JSON, or else the line."""
        print(json.dumps(result, indent=1) if self.json_ else line)

    def bar(self, what: str) -> Callable[[list[Item]], Iterable[Item]]:
        """A progress bar on standard error, when it is a terminal."""
        console = Console(stderr=True)
        return lambda items: track(items, what, console=console, disable=not console.is_terminal or self.json_)


class Info(Action, cli_prog_name="tvkd store info"):
    """What is in a store, by teacher: sequences, tokens, bytes a token, segments, temperatures, provenance."""

    def run(self) -> int:
        result = info.gather(StoreReader(self.store))
        if self.json_:
            self.tell(result, "")
        else:
            Console().print(info.table(result))
        return 0


class Verify(DatasetFlags, Action, cli_prog_name="tvkd store verify"):
    """Read every byte of a store and check it. Exit code 1 when something is damaged.

    With --rescore, a random sample of a data set's completions is also computed again by transformers in float32, and
    how far the stored values are off is kept in the store, as a certificate that a trainer can ask for. The data set
    is named by the flags of `tvkd prefetch`.
    """

    rescore: PositiveInt | None = Field(
        None, description="completions to compute again; needs model, dataset, tokenizer"
    )
    model: str | None = Field(None, description="rescore: the teacher's directory; its weights must be the store's")
    tokenizer: str | None = Field(None, description="rescore: the tokenizer that they were fetched with")
    seed: int = Field(0, description="rescore: which sample is drawn")

    def run(self) -> int:
        given = [self.model, self.dataset, self.tokenizer]
        if (self.rescore is None) != (given == [None] * 3) or (self.rescore is not None and None in given):
            raise InvalidRequest("--rescore goes with --model, --dataset and --tokenizer: give all four, or none")
        store = StoreReader(self.store)
        problems = verify(store, progress=self.bar("Verifying"))
        certificate = None
        if self.rescore is not None:
            from tvkd.store.rescore import rescore  # noqa: PLC0415 - needs the trainer's packages

            certificate = rescore(
                store, self.rescore, model=str(self.model), pairs=self.pairs, tokenizer=str(self.tokenizer),
                seed=self.seed, progress=self.bar("Computing again"),
            )  # fmt: skip
        result = {
            "segments": len(store.catalog.segments),
            "problems": [asdict(problem) for problem in problems],
            "certificate": certificate.model_dump() if certificate else None,
        }
        lines = [f"{problem.file}: {problem.what}" for problem in problems]
        lines.append(f"{len(problems)} problems in {len(store.catalog.segments)} segments and what is beside them")
        if certificate:
            lines.append(info.certificate_line(certificate.model_dump()))
        self.tell(result, "\n".join(lines))
        return 1 if problems else 0


class Compact(Action, cli_prog_name="tvkd store compact"):
    """Merge many small segments into few, beside readers and a live server. The old files go with `tvkd store gc`."""

    segment_bytes: PositiveInt = Field(
        SEGMENT_BYTES, description="size of a merged segment; four times as much memory is used"
    )

    def run(self) -> int:
        with closing(open_store(self.store, create=False)) as store:
            done = compact(store, segment_bytes=self.segment_bytes, progress=self.bar("Compacting"))
        self.tell(
            asdict(done),
            f"{done.segments_before} segments became {done.segments_after}, {done.bytes_before:,} bytes "
            f"{done.bytes_after:,}" + (f"; {done.damaged} damaged blocks were left out" if done.damaged else ""),
        )
        return 0


class Gc(Action, cli_prog_name="tvkd store gc"):
    """Remove segments that were compacted, what crashes left, and commits that a checkpoint holds."""

    grace_hours: Annotated[float, Field(ge=0)] = Field(
        GRACE_SECONDS / 3600,
        description="remove only what has not been live for so long: longer than readers use an old segment, and than "
        "a writer may be suspended",
    )

    def run(self) -> int:
        with closing(open_store(self.store, create=False)) as store:
            done = collect(store, grace_seconds=self.grace_hours * 3600)
        self.tell(asdict(done), f"{done.files} files removed, {done.bytes:,} bytes")
        return 0


class Export(Action, cli_prog_name="tvkd store export"):
    """Write one teacher's values as a store of their own, compacted, with a card: a directory, or a .zip file."""

    output: str = Field(description="a new directory, or a file that ends in .zip")
    teacher_id: str | None = Field(None, description="which teacher, when the store holds several")
    segment_bytes: PositiveInt = Field(SEGMENT_BYTES, description="size of a segment")

    def run(self) -> int:
        done = archive.export(
            StoreReader(self.store), self.output, self.teacher_id, segment_bytes=self.segment_bytes,
            progress=self.bar("Exporting"),
        )  # fmt: skip
        self.tell(asdict(done), f"{done.copied} blocks in {self.output}" + archive.left_out(done))
        return 1 if done.damaged else 0


class Import(Action, cli_prog_name="tvkd store import"):
    """Take in another store's values, such as an export's. What is here stays; safe to repeat."""

    source: str = Field(description="a store's directory, .zip file or URL")
    teacher_id: str | None = Field(None, description="only this teacher's")
    segment_bytes: PositiveInt = Field(SEGMENT_BYTES, description="size of a segment")

    def run(self) -> int:
        with archive.opened(self.source) as source:
            done = archive.take_in(
                source, self.store, self.teacher_id, segment_bytes=self.segment_bytes, progress=self.bar("Importing")
            )
        self.tell(
            asdict(done), f"{done.copied} blocks imported, {done.present} were there already{archive.left_out(done)}"
        )
        return 1 if done.damaged else 0


ACTIONS: dict[str, type[Action]] = {
    action.__name__.lower(): action for action in (Info, Verify, Compact, Gc, Export, Import)
}


def store(argv: list[str]) -> int:
    """Run `tvkd store ACTION …`. Returns 0 done, 2 for a user's mistake, 1 for a fault or damage found."""
    entries = {
        name: Entry(f"{__name__}:{action.__name__}", "server", (action.__doc__ or "").splitlines()[0])
        for name, action in ACTIONS.items()
    }
    return dispatch("tvkd store", entries, argv)
