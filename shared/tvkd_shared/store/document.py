"""A JSON file that carries its own checksum. Any flipped byte is seen, also in the checksum and between the words."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from tvkd_shared.store.block import Damaged

CHECKSUM = "crc32"


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """The document in its one spelling: keys sorted, one a line, with a CRC-32 over the spelling without it."""
    return _spelled(dict(document) | {CHECKSUM: checksum(document)})


def from_bytes(content: bytes, name: str) -> dict[str, Any]:
    """The document without its checksum. Raises Damaged when the bytes are not those that were written."""
    try:
        document: dict[str, Any] = json.loads(content)
        if _spelled(document) != content or document.pop(CHECKSUM) != checksum(document):
            raise Damaged(f"{name} does not match its checksum")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{name} is damaged: {error}") from error
    return document


def checksum(document: Mapping[str, Any]) -> int:
    """CRC-32 over a document as `json.dumps(document, sort_keys=True, indent=1)` spells it."""
    return zlib.crc32(_spelled(document))


def _spelled(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1).encode()
