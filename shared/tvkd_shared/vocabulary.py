"""Which token each id stands for, and the chat template around text: what tells one tokenizer from another."""

import hashlib
import json
from collections.abc import Mapping


def vocabulary_digest(ids: Mapping[str, int]) -> str:
    """Digest of a tokenizer's vocabulary, added tokens included, as 32 hexadecimal digits. `ids`: token → id."""
    by_id = sorted((number, token) for token, number in ids.items())
    return hashlib.blake2b(json.dumps(by_id, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def template_digest(template: object) -> str | None:
    """Digest of a chat template, a text or several by name, as 32 hexadecimal digits; None where there is none."""
    if not template:
        return None
    return hashlib.blake2b(json.dumps(template, sort_keys=True).encode(), digest_size=16).hexdigest()


def tokens_by_id(ids: Mapping[str, int]) -> list[str | None]:
    """The token of each id from 0 on; None for an id that stands for no token."""
    tokens: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for token, number in ids.items():
        tokens[number] = token
    return tokens
