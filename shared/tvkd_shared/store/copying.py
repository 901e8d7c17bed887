"""Numbers from one store into another: what export and import are made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import Float32
from tvkd_shared.store.block import rounded
from tvkd_shared.store.certificate import write_certificate
from tvkd_shared.store.compact import sound_blocks
from tvkd_shared.store.reader import StoreReader
from tvkd_shared.store.search import Columns
from tvkd_shared.store.segment import SegmentEntry
from tvkd_shared.store.store import Store


@dataclass(frozen=True, slots=True)
class CopyCounts:
    """blocks that were copied, that were there already, and that failed a check in the source and were left out."""

    copied: int
    present: int
    damaged: int


def copy(
    source: StoreReader,
    target: Store,
    teacher: str | None = None,
    *,
    segment_bytes: int,
    progress: Callable[[list[SegmentEntry]], Iterable[SegmentEntry]] = iter,
) -> CopyCounts:
    """Publish in `target` the columns of one teacher, or of all, that `source` has and `target` does not.

    What `target` has stays, so it is safe to repeat. The source's recent blocks are copied too. So are teachers, and
    the certificates of those whose numbers in `target` are then the source's, to the bit. The source may be compacted
    and collected meanwhile.

    Raises InvalidRequest when the source has no such teacher, or is less precise than the target says of itself;
    StoreUnavailable when disk or service fails: what was published stays.
    """
    check_teacher(source, teacher)
    _check_precision(source, target)
    recent = source.recent_rows()  # first: what is sealed meanwhile is found in a segment
    source.refresh()
    others = {entry.teacher for entry in target.catalog.segments.values()}
    gathered: dict[tuple[str, Columns], dict[bytes, Float32]] = {}
    copied = present = damaged = 0
    new: set[tuple[bytes, Columns]] = set()

    def publish() -> None:
        nonlocal copied, present
        for (owner, columns), blocks in gathered.items():
            given = [(key, columns, rounded(block, target.format.mantissa_bits)) for key, block in blocks.items()]
            stored, _ = target.add(owner, given, publish=True)
            copied += stored
            again = {(key, columns) for key in blocks} & new  # copies of what this call published itself
            present += len(blocks) - stored - len(again)
            if stored:
                new.update((key, columns) for key in blocks)
        gathered.clear()

    def take(owner: str, columns: Columns, blocks: dict[bytes, Float32]) -> None:
        gathered[owner, columns] = blocks | gathered.get((owner, columns), {})  # the first copy counts
        if sum(block.nbytes for of_key in gathered.values() for block in of_key.values()) >= segment_bytes:
            publish()

    done: set[str] = set()
    while entries := _remaining(source, teacher, done):
        for entry in progress(entries):
            done.add(entry.name)
            blocks = list(sound_blocks(source, entry))
            if bad := sum(block is None for _, block in blocks):
                source.refresh()
                if entry.name not in source.catalog.segments:
                    break  # collected: the segment that its blocks are in now has its turn later
            damaged += bad
            take(entry.teacher, entry.columns, {key: block for key, block in blocks if block is not None})
    for row in recent:
        if teacher in (None, row.teacher) and row.numbers is not None:
            take(row.teacher, row.columns, {row.key: row.numbers})
    publish()
    _copy_teachers(source, target, teacher)
    if source.format == target.format:
        _copy_certificates(source, target, teacher, others)
    return CopyCounts(copied, present, damaged)


def check_teacher(source: StoreReader, teacher: str | None) -> None:
    """Raises InvalidRequest when a teacher is named that the source does not have."""
    held = source.teacher_ids()
    if teacher is not None and teacher not in held:
        raise InvalidRequest(f"store {source.place} has no teacher {teacher}; it holds {', '.join(held) or 'none'}")


def _check_precision(source: StoreReader, target: Store) -> None:
    if source.format.mantissa_bits < target.format.mantissa_bits:
        raise InvalidRequest(
            f"store {source.place} keeps {source.format.mantissa_bits} mantissa bits and {target.place} says "
            f"{target.format.mantissa_bits}, more than it would then have; use a store of the same precision"
        )


def _remaining(source: StoreReader, teacher: str | None, done: set[str]) -> list[SegmentEntry]:
    """Live segments that are not done yet, in the order in which they count."""
    live = [entry for entry in source.catalog.segments.values() if teacher in (None, entry.teacher)]
    return sorted((entry for entry in live if entry.name not in done), key=lambda entry: entry.rank)


def _copy_teachers(source: StoreReader, target: Store, teacher: str | None) -> None:
    there = target.teachers()
    for name, provenance in source.teachers().items():
        if teacher in (None, name) and name not in there:
            target.add_teacher(name, provenance)


def _copy_certificates(source: StoreReader, target: Store, teacher: str | None, others: set[str]) -> None:
    """Copy a certificate only if the target had no other numbers of its teacher, which it would not be about."""
    for certificate in source.certificates():
        if teacher in (None, certificate.teacher) and certificate.teacher not in others:
            write_certificate(target.files, certificate)
