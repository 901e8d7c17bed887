"""Many segments into few, beside readers and writers: what is read stays, to the bit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tvkd_server.store.publisher import Publisher
from tvkd_server.store.segment import new_segment
from tvkd_shared.record import Float32
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.entry import SegmentEntry
from tvkd_shared.store.log import Name
from tvkd_shared.store.reader import StoreReader
from tvkd_shared.store.segment import Segment

SEGMENT_BYTES = 256 << 20
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Compacted:
    """segments_before and segments_after: of those that were merged; damaged: blocks that failed a check, left out."""

    segments_before: int = 0
    segments_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    damaged: int = 0

    def __add__(self, other: "Compacted") -> "Compacted":
        return Compacted(
            self.segments_before + other.segments_before,
            self.segments_after + other.segments_after,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
            self.damaged + other.damaged,
        )


def compact(
    store: Publisher,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    progress: Callable[[list[list[SegmentEntry]]], Iterable[list[SegmentEntry]]] = iter,
) -> Compacted:
    """Merge small segments of one teacher and temperature into segments of about `segment_bytes`.

    Each merge is one commit; the old files stay until `collect` removes them, for readers that still use them. It needs
    memory for about four times `segment_bytes`. Blocks that fail their check are left out: they count as missing
    already. Raises StoreUnavailable when disk or service fails: merges that were committed stay.
    """
    done = Compacted()
    store.refresh()
    store.heal()
    for inputs in progress(plan(store.catalog.segments.values(), segment_bytes)):
        done += _merge(store, inputs)
    if done.segments_before:
        store.checkpoint()
        store.save_index(grown=0.0)
    return done


def plan(entries: Iterable[SegmentEntry], segment_bytes: int) -> list[list[SegmentEntry]]:
    """Groups of at least two segments to be merged, each in the order in which they count."""
    small: dict[tuple[str, float], list[SegmentEntry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.order, entry.name)):
        if entry.bytes < segment_bytes // 2:
            small.setdefault((entry.teacher, entry.temperature), []).append(entry)
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


def _merge(store: Publisher, inputs: list[SegmentEntry]) -> Compacted:
    teacher, temperature = inputs[0].teacher, inputs[0].temperature
    blocks: dict[bytes, Float32] = {}
    damaged = 0
    for entry in inputs:
        for key, block in sound_blocks(store, entry):
            if block is None:
                damaged += 1
            else:
                blocks.setdefault(key, block)
    for key in _of_others(store, inputs, list(blocks)):
        del blocks[key]
    made = [
        new_segment(store.new_name(), teacher, temperature, blocks, mantissa_bits=store.format.mantissa_bits)
    ] if blocks else []  # fmt: skip
    if not store.publish(made, removed=[entry.name for entry in inputs]):
        return Compacted()  # another compaction was there first
    return Compacted(
        len(inputs), len(made), sum(entry.bytes for entry in inputs), sum(one.entry.bytes for one in made), damaged
    )


def sound_blocks(store: StoreReader, entry: SegmentEntry) -> Iterator[tuple[bytes, Float32 | None]]:
    """Key and block of each record of a segment; None for a block that fails a check.

    A segment whose keys are damaged gives one None for each record, with no key.
    """
    segment = Segment(store.files, entry, ChunkCache(_CHUNK_BYTES))
    try:
        keys = [row.tobytes() for row in segment.keys()]  # noqa: SIM118 - a method, of no dict
    except (Damaged, FileNotFoundError):
        yield from ((b"", None) for _ in range(entry.records))
        return
    for row, key in enumerate(keys):
        try:
            yield key, segment.block(row, key)
        except (Damaged, FileNotFoundError):
            yield key, None


def _of_others(store: StoreReader, inputs: list[SegmentEntry], keys: list[bytes]) -> list[bytes]:
    """Those keys whose value is, and stays, the one in a segment that is not merged here."""
    own = {entry.name for entry in inputs}
    twice = [
        key
        for key, places in zip(keys, store.index.find(keys), strict=True)
        if any(segment not in own for segment, _ in places)
    ]
    won = store.winners([Name(key, inputs[0].temperature) for key in twice])
    return [name.key for name, (segment, _) in won.items() if segment not in own]
