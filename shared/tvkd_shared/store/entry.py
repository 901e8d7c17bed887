"""What is said of a segment without opening it."""

from pydantic import BaseModel, ConfigDict

SEGMENTS = "segments"
LAST_ORDER = 2**53
"""Order of a segment that is found with no commit that names it: after all others."""


class SegmentEntry(BaseModel):
    """What a commit says of one segment.

    name            its folder under `segments/`
    teacher         whose values it holds
    temperature     of its blocks; BASE for base blocks
    records, states its blocks and their rows
    bytes           of all its files
    metadata_crc32  CRC-32 over its `zarr.json` files; see `segment.metadata_crc32`
    order           number of the commit that published it, or the first of its parts; of two blocks of a key the one
                    with the lower order counts
    sequences, tokens   completions that were not in the store before, and their tokens; 0 for further temperatures
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    teacher: str
    temperature: float
    records: int
    states: int
    bytes: int
    metadata_crc32: int
    order: int = LAST_ORDER
    sequences: int = 0
    tokens: int = 0
