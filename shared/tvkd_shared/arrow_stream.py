"""An answer as an Arrow stream that comes in parts: some items in each record batch, in order of completion.

It is that of `arrow_codec`, in several batches. It is whole when its end mark has come. Where something fails amid it,
a batch with no rows comes last, whose own metadata hold the problem under `tvkd` and, if asking again helps, seconds
under `retry-after`; no end mark follows.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tvkd_shared.arrow_codec import FAULTS, METADATA, answer_batch, line_of, read_completions
from tvkd_shared.arrow_messages import Messages, is_compressed
from tvkd_shared.wire import CompletionAnswer, ItemAnswer, PotentialsAnswer, PotentialsRequest, Problem, TextItem

_RETRY_AFTER = b"retry-after"


class AnswerWriter:
    """Writes the answer to a request, part by part."""

    def __init__(self, request: PotentialsRequest, teacher_id: str) -> None:
        counts_I = [len(item.completions) for item in request.items]
        self._first_I = np.cumsum([0, *counts_I])
        self._text = any(isinstance(item, TextItem) for item in request.items)
        self._about = (teacher_id, request.temperatures, request.columns())
        self._sink = io.BytesIO()
        self._stream: Any = None  # opened by the first part, which shows its schema

    def part(self, items: Mapping[int, ItemAnswer]) -> bytes:
        """Items by their numbers in the request."""
        row_N = np.concatenate([np.arange(self._first_I[number], self._first_I[number + 1]) for number in items])
        batch = answer_batch(PotentialsAnswer(*self._about, list(items.values())), row_N, text=self._text)
        if self._stream is None:
            self._stream = pa.ipc.new_stream(self._sink, batch.schema)
            self._empty = batch.slice(0, 0)
        self._stream.write_batch(batch)
        return self._written()

    def failure(self, problem: Problem, retry_after: float | None) -> bytes:
        """The last that is written when some items will not come, behind the first part at least."""
        seconds = {} if retry_after is None else {_RETRY_AFTER: str(retry_after)}
        self._stream.write_batch(self._empty, custom_metadata={METADATA: problem.model_dump_json(), **seconds})
        return self._written()

    def end(self) -> bytes:
        self._stream.close()
        return self._written()

    def _written(self) -> bytes:
        written = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return written


@dataclass(slots=True)
class Part:
    """Some completions of an answer, by their rows in the request; or the problem that ended it early."""

    teacher_id: str
    temperatures: list[float]
    completions: dict[int, CompletionAnswer]
    problem: Problem | None = None
    retry_after: float | None = None


class AnswerReader:
    """Reads an answer as its bytes come. `ended` once all of it has."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._messages = Messages()
        self._schema = b""

    @property
    def ended(self) -> bool:
        return self._messages.ended

    def feed(self, piece: bytes) -> Iterator[Part]:
        """The parts that the piece makes whole. Raises ValueError when they are no such answer."""
        try:
            for message in self._messages.feed(piece):
                if not self._schema:
                    pa.ipc.open_stream(message)  # unlike `read_schema`, it survives a message of another kind
                    self._schema = message
                else:
                    yield self._part(message)
        except (LookupError, TypeError, *FAULTS) as error:
            raise ValueError(line_of(error)) from error

    def _part(self, message: bytes) -> Part:
        kind = pa.ipc.read_message(message)
        if kind.type != "record batch" or is_compressed(bytes(kind.metadata)):
            raise ValueError("it holds more than plain record batches")
        stream = pa.ipc.open_stream(self._schema + message)
        batch, metadata = stream.read_next_batch_with_custom_metadata()
        batch.validate(full=True)
        about = json.loads(stream.schema.metadata[METADATA])
        part = Part(about["teacher_id"], about["temperatures"], {})
        if metadata is not None and METADATA in metadata:
            part.problem = Problem.model_validate_json(metadata[METADATA])
            part.retry_after = float(metadata[_RETRY_AFTER]) if _RETRY_AFTER in metadata else None
            return part
        row_N, completions, _ = read_completions(batch, self._columns)
        part.completions = dict(zip(row_N.tolist(), completions, strict=True))
        if len(part.completions) < len(completions):
            raise ValueError("a row came twice")
        return part
