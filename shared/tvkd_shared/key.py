"""Content keys: who the teacher is, and which completion after which prompt its values belong to.

What is not in a key must not change the value; what is in it and changes, changes the key.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvkd_shared.errors import InvalidRequest

VALUE_DEFINITION = 1
"""Version of the maths in `value.py`. A change to what a stored number means raises it, and so changes every key."""

KEY_BYTES = 16

Tokens = Sequence[int] | npt.NDArray[np.uint32]
"""Token ids in a list or in an array."""

_UINT32 = np.dtype("<u4")

# Config entries that do not change a logit; the dtype that the engine runs in is part of the id on its own.
_NOT_IN_ID = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "quantization_config",
}


def teacher_id(
    weights_digest: str, config: Mapping[str, Any], dtype: str, quantization: Mapping[str, Any] | str | None
) -> str:
    """Identity of a teacher as 32 hexadecimal digits: its weights, config, dtype and quantisation.

    Engine, version, tokenizer and chat template are provenance, kept beside the id and not in it.
    """
    identity = {
        "weights": weights_digest,
        "config": {name: entry for name, entry in config.items() if name not in _NOT_IN_ID},
        "dtype": dtype,
        "quantization": quantization,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=KEY_BYTES, person=b"tvkd-teacher").hexdigest()


def completion_keys(teacher: str, prompt_token_ids: Tokens, completions: Sequence[Tokens]) -> list[bytes]:
    """Key of each completion after one prompt, 16 bytes each.

    The digest of (value-definition version, teacher id, prompt tokens, completion tokens), each with its length in
    front, so that a token moved across the border between prompt and completion gives another key.
    Raises InvalidRequest as `token_array` does.
    """
    head = hashlib.blake2b(digest_size=KEY_BYTES, person=b"tvkd-completion")
    head.update(VALUE_DEFINITION.to_bytes(4, "little"))
    for payload in (teacher.encode(), token_array(prompt_token_ids).tobytes()):
        head.update(len(payload).to_bytes(8, "little") + payload)
    keys = []
    for completion in completions:
        payload = token_array(completion).tobytes()
        digest = head.copy()
        digest.update(len(payload).to_bytes(8, "little") + payload)
        keys.append(digest.digest())
    return keys


def token_array(token_ids: Tokens, place: str = "token ids") -> npt.NDArray[np.uint32]:
    """Token ids as a little-endian uint32 array, which is what a key digests.

    Raises InvalidRequest, naming the place, unless they are one or more whole numbers in 0 … 2^32 − 1.
    """
    if isinstance(token_ids, np.ndarray) and token_ids.dtype == _UINT32 and token_ids.size:
        return token_ids
    try:
        ids = np.asarray(token_ids)
    except ValueError:  # lists within the list
        ids = np.array(None)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise InvalidRequest(f"{place} have to be one or more whole numbers")
    if ids.min() < 0 or ids.max() >= 2**32:
        raise InvalidRequest(f"{place}: token ids lie in 0 … 2^32 − 1")
    return ids.astype(_UINT32)
