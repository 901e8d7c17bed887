"""What every process does that changes a store: publish segments, in one commit each."""

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tvkd_server.store.segment import NewSegment, new_segment
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.record import Float32
from tvkd_shared.store import document
from tvkd_shared.store.block import BASE
from tvkd_shared.store.catalog import COMMITS, Commit, numbered
from tvkd_shared.store.entry import SEGMENTS, SegmentEntry
from tvkd_shared.store.log import Name, Pending
from tvkd_shared.store.reader import TEACHERS, StoreReader
from tvkd_shared.store.segment import Segment
from tvkd_shared.wire import TeacherInfo

_logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 256
"""Commits that an opening reads one by one, at most."""


class Publisher(StoreReader):
    """A store that is there, and whose segments this process adds to, merges and removes, beside others.

    `LocalStore` and `SharedStore` take records too, and say when those are durable.
    """

    def __init__(self, place: str | Path) -> None:
        super().__init__(place)
        self._writer = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)
        self._committing = threading.Lock()
        self.heal()

    def add_teacher(self, info: TeacherInfo) -> None:
        """Keeps a teacher's provenance under its id, in place of what was kept before."""
        self.files.write({f"{TEACHERS}/{info.id}.json": document.to_bytes(info.model_dump(mode="json"))})

    def publish(self, made: Sequence[NewSegment], removed: Iterable[str] = ()) -> bool:
        """Write the segments and commit to them, and to the removal of others, in one step; to adopted ones too.

        Returns False, and publishes nothing, when one of those to be removed is not live any more. Raises
        StoreUnavailable when disk or service fails; whether it was published is then not known.
        """
        for segment in made:
            self._write(segment)
        gone = dict.fromkeys(removed, time.time())
        with self._committing:
            while True:
                self.refresh()
                if not set(gone) <= set(self.catalog.segments):
                    return False
                number = self.catalog.number + 1
                entries = [self._counted(segment, gone).model_copy(update={"order": number}) for segment in made]
                adopted = [
                    self.catalog.segments[name].model_copy(update={"order": number})
                    for name in self.catalog.adopted - gone.keys()
                ]
                commit = Commit(writer=self._writer, add=[*self._ordered(entries, gone), *adopted], remove=gone)
                if self.files.create(numbered(COMMITS, number), commit.to_bytes()):
                    break
            with self._refreshing:
                if self.catalog.number == number - 1:  # else another thread has read it back meanwhile
                    self.catalog.apply({number: commit})
                    self._update_view()
        if number % CHECKPOINT_EVERY == 0:
            self.checkpoint()
        return True

    def _write(self, segment: NewSegment) -> None:
        folder = f"{SEGMENTS}/{segment.entry.name}"
        contents = {f"{folder}/{name}": content for name, content in segment.contents.items()}
        try:
            self.files.write(contents)
        except StoreUnavailable:
            with suppress(StoreUnavailable):  # a disk that is full wants its space back
                self.files.remove(list(contents))
            raise
        Segment(self.files, segment.entry, self._cache).prime(segment.arrays)

    def checkpoint(self) -> None:
        """Let openings start from here."""
        with self._refreshing:
            self.catalog.checkpoint()

    def new_segments(self, blocks: Mapping[Name, Pending]) -> list[NewSegment]:
        """One segment for each teacher and temperature, in the order of the blocks."""
        groups: dict[tuple[str, float], dict[bytes, Float32]] = {}
        for name, pending in blocks.items():
            groups.setdefault((pending.teacher, name.temperature), {})[name.key] = pending.block
        return [
            new_segment(self.new_name(), *group, of_key, mantissa_bits=self.format.mantissa_bits)
            for group, of_key in groups.items()
        ]

    def new_name(self) -> str:
        """A segment's name that nobody has used."""
        return f"{self._writer}-{next(self._numbers):06d}"

    def _counted(self, segment: NewSegment, gone: Mapping[str, float]) -> SegmentEntry:
        """The entry with the completions that it brings: all, where it takes the place of others."""
        if segment.entry.temperature != BASE:
            return segment.entry
        new = np.ones(segment.entry.records, bool)
        if not gone:
            keys = [row.tobytes() for row in segment.arrays["keys"]]
            view = self._view
            for row, places in enumerate(view.index.find(keys)):
                # A block of a further temperature has the key too, also when the base block was damaged.
                new[row] = all(view.segments[name].temperature != BASE for name, _ in places)
        return segment.entry.model_copy(update={"sequences": int(new.sum()), "tokens": int(segment.tokens[new].sum())})

    def _ordered(self, entries: Sequence[SegmentEntry], gone: Mapping[str, float]) -> list[SegmentEntry]:
        """A segment that takes the place of others counts from where the first of them did."""
        if not gone:
            return list(entries)
        first = min(self.catalog.segments[name].order for name in gone)
        return [entry.model_copy(update={"order": first}) for entry in entries]

    def heal(self) -> None:
        """Commit to the segments that a damaged commit may have named, and start openings behind it.

        Until then they may be another writer's, which has not committed to them and may never do.
        """
        if self.catalog.adopted:
            _logger.warning(
                "%s: %s damaged; %d segments were found by their own metadata",
                self.place, ", ".join(sorted(self.catalog.damaged)), len(self.catalog.adopted),
            )  # fmt: skip
            self.publish([])
            self.checkpoint()

    def _damaged(self, what: str, damage: Exception) -> bool:
        if new := super()._damaged(what, damage):
            _logger.warning("%s: %s counts as missing, and can be stored again: %s", self.place, what, damage)
        return new
