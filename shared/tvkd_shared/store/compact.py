"""Many segments into few, beside readers and writers: every column that is read stays, to the bit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tvkd_shared.record import Float32
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.reader import StoreReader
from tvkd_shared.store.search import Columns
from tvkd_shared.store.segment import Segment, SegmentEntry
from tvkd_shared.store.store import Store

SEGMENT_BYTES = 256 << 20
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Compaction:
    """segments_before and segments_after: of those that were merged; damaged: blocks that failed a check, left out."""

    segments_before: int = 0
    segments_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    damaged: int = 0

    def __add__(self, other: "Compaction") -> "Compaction":
        return Compaction(
            self.segments_before + other.segments_before,
            self.segments_after + other.segments_after,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
            self.damaged + other.damaged,
        )


def compact(
    store: Store,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    progress: Callable[[list[list[SegmentEntry]]], Iterable[list[SegmentEntry]]] = iter,
) -> Compaction:
    """Seal recent blocks, then merge small segments of one teacher and column list into about `segment_bytes` each.

    Each merge is one commit; the old files stay until `collect` removes them, for readers that still use them. It needs
    memory for about four times `segment_bytes`. Blocks that fail their check are left out: they count as missing
    already. Raises StoreUnavailable when disk or service fails: merges that were committed stay.
    """
    store.seal()
    store.refresh()
    total = Compaction()
    for inputs in progress(plan(store.catalog.segments.values(), segment_bytes)):
        total += _merge(store, inputs)
    if total.segments_before:
        store.write_checkpoint()
        store.save_index(grown=0.0)
    return total


def plan(entries: Iterable[SegmentEntry], segment_bytes: int) -> list[list[SegmentEntry]]:
    """Groups of at least two segments to be merged, each in the order in which they count."""
    small: dict[tuple[str, tuple[str, ...]], list[SegmentEntry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.rank):
        if entry.bytes < segment_bytes // 2:
            small.setdefault((entry.teacher, entry.columns), []).append(entry)
    groups: list[list[SegmentEntry]] = []
    for alike in small.values():
        size = segment_bytes  # of the group that is being filled; full, so that a new one begins
        for entry in alike:
            if size + entry.bytes > segment_bytes:
                groups.append([])
                size = 0
            groups[-1].append(entry)
            size += entry.bytes
    return [group for group in groups if len(group) > 1]


def _merge(store: Store, inputs: list[SegmentEntry]) -> Compaction:
    blocks: dict[bytes, Float32] = {}
    damaged = 0
    for entry in inputs:
        for key, block in sound_blocks(store, entry):
            if block is None:
                damaged += 1
            else:
                blocks.setdefault(key, block)
    winning = _winning(store, inputs, blocks)
    merged = [store.new_segment(inputs[0].teacher, columns, of_key) for columns, of_key in winning.items()]
    if not store.publish(merged, removed=[entry.name for entry in inputs]):
        return Compaction()  # another compaction was there first
    return Compaction(
        len(inputs), len(merged), sum(entry.bytes for entry in inputs), sum(new.entry.bytes for new in merged), damaged
    )


def _winning(
    store: Store, inputs: list[SegmentEntry], blocks: dict[bytes, Float32]
) -> dict[Columns, dict[bytes, Float32]]:
    """By columns and key, what of the blocks counts: not the columns whose first copy is in a segment outside."""
    columns, names, keys = inputs[0].columns, {entry.name for entry in inputs}, list(blocks)
    outside = {name: hits for name, hits in store.index.find(keys).items() if name not in names}
    shared = {keys[which] for hits in outside.values() for which, _ in hits}
    search = store.search(shared, columns, recent=False, refresh=False)
    winning: dict[Columns, dict[bytes, Float32]] = {}
    for key, block in blocks.items():
        lost = {n for piece in search.pieces.get(key, ()) if piece.segment not in names for n in piece.columns}
        if kept := tuple(name for name in columns if name not in lost):
            part = block if kept == columns else block[:, [columns.index(name) for name in kept]]
            winning.setdefault(kept, {})[key] = part
    return winning


def sound_blocks(store: StoreReader, entry: SegmentEntry) -> Iterator[tuple[bytes, Float32 | None]]:
    """Key and block of each record of a segment; None for a block that fails a check.

    A segment whose keys are damaged gives one None for each record, with no key.
    """
    segment = Segment(store.files, entry, ChunkCache(_CHUNK_BYTES))
    try:
        keys = [row.tobytes() for row in segment.keys()]  # noqa: SIM118 - a method, not a dict's
    except (Damaged, FileNotFoundError):
        yield from ((b"", None) for _ in range(entry.records))
        return
    for row, key in enumerate(keys):
        try:
            yield key, segment.block(row, key)
        except (Damaged, FileNotFoundError):
            yield key, None
