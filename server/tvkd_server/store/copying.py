"""Values from one store into another: what export and import are made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvkd_server.store.compact import sound_blocks
from tvkd_server.store.publisher import Publisher
from tvkd_server.store.segment import new_segment
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import Float32
from tvkd_shared.store.block import rounded
from tvkd_shared.store.certificate import write_certificate
from tvkd_shared.store.entry import SegmentEntry
from tvkd_shared.store.log import Name
from tvkd_shared.store.reader import StoreReader
from tvkd_shared.wire import TeacherInfo


@dataclass(frozen=True, slots=True)
class Copied:
    """blocks that were copied, that were there already, and that failed a check in the source and were left out."""

    copied: int
    present: int
    damaged: int


def copy(
    source: StoreReader,
    target: Publisher,
    teacher: str | None = None,
    *,
    segment_bytes: int,
    progress: Callable[[list[SegmentEntry]], Iterable[SegmentEntry]] = iter,
) -> Copied:
    """Publish in `target` what `source` has, of one teacher or of all, and `target` has not.

    What `target` has stays, so it is safe to repeat. Blocks that are still in the source's log come too. Teachers come
    along, and certificates of those whose values in `target` are then the source's, to the bit. The source may be
    compacted and collected meanwhile.

    Raises InvalidRequest when the source has no such teacher, or is less precise than the target says of itself;
    StoreUnavailable when disk or service fails: what was published stays.
    """
    check_teacher(source, teacher)
    _check_precision(source, target)
    pending = source.pending()  # first: what is sealed meanwhile is found in a segment
    source.refresh()
    others = {entry.teacher for entry in target.catalog.segments.values()}
    counts = {"copied": 0, "present": 0, "damaged": 0}
    made: set[str] = set()
    gathered: dict[tuple[str, float], dict[bytes, Float32]] = {}

    def publish(group: tuple[str, float]) -> None:
        if blocks := gathered.pop(group, None):
            new = new_segment(target.new_name(), *group, blocks, mantissa_bits=target.format.mantissa_bits)
            target.publish([new])
            made.add(new.entry.name)
            counts["copied"] += len(blocks)

    def take(group: tuple[str, float], found: dict[bytes, Float32]) -> None:
        names = [Name(key, group[1]) for key in found]
        there = target.winners(names)
        counts["present"] += sum(segment not in made for segment, _ in there.values())
        blocks = gathered.setdefault(group, {})
        for name in names:
            if name not in there:
                blocks.setdefault(name.key, rounded(found[name.key], target.format.mantissa_bits))
        if sum(block.nbytes for block in blocks.values()) >= segment_bytes:
            publish(group)

    done: set[str] = set()
    while left := _left(source, teacher, done):
        for entry in progress(left):
            done.add(entry.name)
            found = list(sound_blocks(source, entry))
            if damaged := sum(block is None for _, block in found):
                source.refresh()
                if entry.name not in source.catalog.segments:
                    break  # collected: on with the segment that its values are in now, in that one's turn
            counts["damaged"] += damaged
            take((entry.teacher, entry.temperature), {key: block for key, block in found if block is not None})
    for name, one in pending.items():
        if teacher in (None, one.teacher):
            take((one.teacher, name.temperature), {name.key: one.block})
    for group in list(gathered):
        publish(group)
    _copy_teachers(source, target, teacher)
    if source.format == target.format:
        _copy_certificates(source, target, teacher, others)
    return Copied(**counts)


def check_teacher(source: StoreReader, teacher: str | None) -> None:
    """Raises InvalidRequest when a teacher is named that the source does not have."""
    held = source.teacher_ids()
    if teacher is not None and teacher not in held:
        raise InvalidRequest(f"store {source.place} has no teacher {teacher}; it holds {', '.join(held) or 'none'}")


def _check_precision(source: StoreReader, target: Publisher) -> None:
    if source.format.mantissa_bits < target.format.mantissa_bits:
        raise InvalidRequest(
            f"store {source.place} keeps {source.format.mantissa_bits} mantissa bits and {target.place} says "
            f"{target.format.mantissa_bits}, more than it would then have; use a store of the same precision"
        )


def _left(source: StoreReader, teacher: str | None, done: set[str]) -> list[SegmentEntry]:
    """Live segments that are not done yet, in the order in which they count."""
    live = [entry for entry in source.catalog.segments.values() if teacher in (None, entry.teacher)]
    return sorted((entry for entry in live if entry.name not in done), key=lambda entry: (entry.order, entry.name))


def _copy_teachers(source: StoreReader, target: Publisher, teacher: str | None) -> None:
    there = target.teachers()
    for name, provenance in source.teachers().items():
        if teacher in (None, name) and name not in there:
            target.add_teacher(TeacherInfo.model_validate(provenance))


def _copy_certificates(source: StoreReader, target: Publisher, teacher: str | None, others: set[str]) -> None:
    """Those of teachers of which `target` had no values of its own: of other values they say nothing."""
    for certificate in source.certificates():
        if teacher in (None, certificate.teacher) and certificate.teacher not in others:
            write_certificate(target.files, certificate)
