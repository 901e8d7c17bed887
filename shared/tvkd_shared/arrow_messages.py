"""Arrow's IPC messages, as far as pyarrow does not show them: where each ends, and whether a batch is compressed."""

from collections.abc import Iterator

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Messages:
    """The messages of a stream that comes in pieces. `ended` once its end mark has come."""

    def __init__(self) -> None:
        self.ended = False
        self._bytes = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The messages that the piece makes whole. Raises ValueError for what is no Arrow stream."""
        self._bytes += piece
        while len(self._bytes) >= len(END_OF_STREAM):
            if self.ended or not self._bytes.startswith(END_OF_STREAM[:4]):
                raise ValueError("it is no Arrow IPC stream, or goes on behind its end mark")
            if self._bytes.startswith(END_OF_STREAM):
                self.ended = True
                del self._bytes[: len(END_OF_STREAM)]
                continue
            head = 8 + int.from_bytes(self._bytes[4:8], "little")
            if len(self._bytes) < head:
                return
            end = head + _body_length(bytes(self._bytes[8:head]))
            if len(self._bytes) < end:
                return
            yield bytes(self._bytes[:end])
            del self._bytes[:end]


def is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's message has a `compression`: field 3 of RecordBatch, in field 2 of Message.

    Asked because pyarrow decompresses unasked.
    """
    header = _field(metadata, _integer(metadata, 0, 4), 2)
    return _field(metadata, header + _integer(metadata, header, 4), 3) != 0


def _body_length(metadata: bytes) -> int:
    """Field 3 of Message. Raises ValueError when it is negative: this is read before pyarrow has checked anything."""
    place = _field(metadata, _integer(metadata, 0, 4), 3)
    length = int.from_bytes(metadata[place : place + 8], "little", signed=True) if place else 0
    if length < 0:
        raise ValueError("it is no Arrow IPC stream: a message has a negative length")
    return length


def _field(metadata: bytes, table: int, index: int) -> int:
    """Where a field of a table of the flatbuffer is, as Arrow's Message.fbs numbers them; 0 if the table lacks it."""
    vtable = table - int.from_bytes(metadata[table : table + 4], "little", signed=True)
    slot = 4 + 2 * index
    offset = _integer(metadata, vtable + slot, 2) if slot < _integer(metadata, vtable, 2) else 0
    return table + offset if offset else 0


def _integer(metadata: bytes, place: int, size: int) -> int:
    return int.from_bytes(metadata[place : place + size], "little")
