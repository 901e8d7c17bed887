"""Which codec reads a request and which writes its answer, by `Content-Type` and `Accept`."""

import re
from typing import Any

from tvkd_shared import arrow_codec, json_codec
from tvkd_shared.errors import InvalidRequest

JSON, ARROW = json_codec.MEDIA_TYPE, arrow_codec.MEDIA_TYPE
_CODECS: dict[str, Any] = {JSON: json_codec, ARROW: arrow_codec}
_QUALITY = re.compile(r"q=([01](?:\.\d*)?)")


def codec_of_request(content_type: str) -> Any:
    """The codec of a `Content-Type`. Raises InvalidRequest for another one, or none."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in _CODECS:
        raise InvalidRequest(f"Content-Type is {media_type or 'missing'}; send `{JSON}` or `{ARROW}`")
    return _CODECS[media_type]


def codec_of_answer(accept: str) -> Any:
    """The codec that an `Accept` prefers; JSON where it prefers neither. Raises InvalidRequest when it takes neither.

    As RFC 9110 has it, a type's quality is that of the most specific range that it falls in. Of equal qualities the
    one that is named more specifically counts.
    """
    json, arrow = (_preference(accept or "*/*", media_type) for media_type in (JSON, ARROW))
    if not max(json, arrow)[0]:
        raise InvalidRequest(f"Accept is `{accept}`; an answer comes as `{JSON}` or `{ARROW}`")
    return _CODECS[ARROW if arrow > json else JSON]


def _preference(accept: str, media_type: str) -> tuple[float, int]:
    """(quality, how specific the range is): (0.0, 0) where no range has the type."""
    ranges = ["*/*", "application/*", media_type]
    specific, quality = -1, 0.0
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        if name in ranges and ranges.index(name) > specific:
            given = next((found[1] for word in parameters if (found := _QUALITY.fullmatch(word))), "1")
            specific, quality = ranges.index(name), float(given)
    return quality, max(specific, 0)
