"""What is live at one moment: the segments, and the index of their keys. A look-up is answered from one view."""

from collections.abc import Callable, Mapping, Sequence

from tvkd_shared.record import Float32
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.entry import SegmentEntry
from tvkd_shared.store.index import Index
from tvkd_shared.store.log import Name
from tvkd_shared.store.segment import Segment

Places = Sequence[tuple[str, int]]
"""Segments and rows that may hold a key."""


class Gone(Exception):
    """A segment of this view has files no more: it was compacted and collected since, or they are lost."""

    def __init__(self, segment: str) -> None:
        super().__init__(segment)
        self.segment = segment


class View:
    """Immutable. `open_segment` gives the segment of an entry; `damaged` is told what fails a check."""

    def __init__(
        self,
        segments: Mapping[str, SegmentEntry],
        index: Index,
        open_segment: Callable[[SegmentEntry], Segment],
        damaged: Callable[[str, Exception], object],
    ) -> None:
        self.segments = segments
        self.index = index
        self._open = open_segment
        self._damaged = damaged

    def first(self, name: Name, places: Places, lost: set[str]) -> tuple[str, Float32] | None:
        """The first sound block of a name, in the order of publishing, and its segment; None when there is none.

        Raises Gone for a segment whose files are not there, but for those that are known to be `lost`: never is a later
        block taken for an earlier one that may have moved.
        """
        entries = [(self.segments[segment], row) for segment, row in places if segment in self.segments]
        candidates = [
            (entry.order, entry.name, row)
            for entry, row in entries
            if entry.temperature == name.temperature and row < entry.records
        ]
        for _, segment, row in sorted(candidates):
            try:
                block = self._open(self.segments[segment]).block(row, name.key)
            except Damaged as damage:
                self._damaged(f"{segment}/{row}", damage)
            except FileNotFoundError as damage:
                if segment not in lost:
                    raise Gone(segment) from damage
                self._damaged(segment, damage)
            else:
                if block is not None:
                    return segment, block
        return None
