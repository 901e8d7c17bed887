"""The one error tree.

    TVKDError
    ├── InvalidRequest (ValueError)         422  the request or a setting is malformed
    │   ├── TokenOutOfRange                 422  a token id outside the teacher's vocabulary
    │   ├── SequenceTooLong                 422  prompt and completion exceed the teacher's longest sequence
    │   └── TemperatureNotServed            422  a temperature outside the range served
    ├── Unauthorized (PermissionError)      401  no API key, or a wrong one
    ├── Forbidden (PermissionError)         403  the API key may not do this
    ├── NotCached (LookupError)             404  `cache: only`, and the store does not hold the key
    ├── TeacherMismatch (ValueError)        409  another teacher answers than the one asked for
    ├── PayloadTooLarge (ValueError)        413  more bytes or tokens than one request may carry
    ├── Overloaded (RuntimeError)           429  the queue is full; try again after `retry_after` seconds
    ├── TeacherUnavailable (RuntimeError)   503  the teacher is loading, draining or dead
    ├── StoreUnavailable (OSError)          503  the store cannot be opened, read or written
    │   └── NoStore                         503  there is no store at that path
    └── WrongAnswer (ValueError)                 a server's answer does not fit the question (client side)

Each message is one line that says what was wrong and what would be right.
"""

from typing import ClassVar


class TVKDError(Exception):
    """Base of every error raised on purpose. `code` is stable, `status` is the HTTP status it travels as."""

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class InvalidRequest(TVKDError, ValueError):
    code, status = "invalid-request", 422


class TokenOutOfRange(InvalidRequest):
    code = "token-out-of-range"


class SequenceTooLong(InvalidRequest):
    code = "sequence-too-long"


class TemperatureNotServed(InvalidRequest):
    code = "temperature-not-served"


class Unauthorized(TVKDError, PermissionError):
    code, status = "unauthorized", 401


class Forbidden(TVKDError, PermissionError):
    code, status = "forbidden", 403


class NotCached(TVKDError, LookupError):
    code, status = "not-cached", 404


class TeacherMismatch(TVKDError, ValueError):
    code, status = "teacher-mismatch", 409


class PayloadTooLarge(TVKDError, ValueError):
    code, status = "payload-too-large", 413


class Overloaded(TVKDError, RuntimeError):
    code, status = "overloaded", 429


class TeacherUnavailable(TVKDError, RuntimeError):
    code, status = "teacher-unavailable", 503


class StoreUnavailable(TVKDError, OSError):
    code, status = "store-unavailable", 503


class NoStore(StoreUnavailable):
    pass


class WrongAnswer(TVKDError, ValueError):
    code = "wrong-answer"


def _leaves(root: type[TVKDError]) -> list[type[TVKDError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _leaves(child))]


# Reversed: of the errors that share a code, the one above the others stands for it.
BY_CODE: dict[str, type[TVKDError]] = {error.code: error for error in reversed(_leaves(TVKDError))}
