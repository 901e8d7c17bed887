"""Who may ask: the one API key of a flag or a variable, and those of a file, which is read again when it changes."""

import hmac
import logging
import tomllib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, PositiveInt, TypeAdapter, ValidationError

from tvkd_shared.errors import InvalidRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: a key's name, or else an address; and what the key may do."""

    name: str = ""
    read_only: bool = False
    max_queued_tokens: int | None = None


class _Entry(BaseModel, extra="forbid", strict=True):
    """One table of the file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
    read_only: bool = False
    max_queued_tokens: PositiveInt | None = None


_EXAMPLE = "[name] with sha256 = the hex digest of the key"
_FILE = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], _Entry])


class Keys:
    """The keys that a server knows, by their digests. Raises InvalidRequest when the file cannot be used."""

    def __init__(self, token: str | None, path: Path | None) -> None:
        self._single = {} if token is None else {sha256(token.encode()).digest(): Client()}
        self._path = path
        self._version = self._version_of_file()
        self._of_file = _read(path) if path else {}

    def __bool__(self) -> bool:
        """Whether the server asks for a key."""
        return bool(self._single or self._path)

    def client(self, token: str) -> Client | None:
        """Whose key this is; None when it is nobody's. A file that is at fault leaves the keys as they were."""
        if self._path and (version := self._version_of_file()) != self._version:
            self._version = version
            try:
                self._of_file = _read(self._path)
                logger.info("--api-keys %s was read again: %d keys", self._path, len(self._of_file))
            except InvalidRequest as error:
                logger.error("%s; the keys stay as they were", error)
        digest, found = sha256(token.encode()).digest(), None
        for known, client in (self._of_file | self._single).items():  # All of them, so that the time tells nothing.
            if hmac.compare_digest(digest, known):
                found = client
        return found

    def _version_of_file(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat() if self._path else None
        except OSError:
            return None
        return status and (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(path: Path) -> dict[bytes, Client]:
    """The clients of a file, by the digests of their keys. No message quotes what stands in the file but names."""
    try:
        entries = _FILE.validate_python(tomllib.loads(path.read_text()))
    except OSError as error:
        raise InvalidRequest(f"--api-keys {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRequest(
            f"--api-keys {path}: {place}: {first['msg']}; a key is a table such as {_EXAMPLE}"
        ) from None
    except ValueError as error:  # bytes that are not UTF-8 too
        raise InvalidRequest(f"--api-keys {path} is not TOML: {error}; a key is a table such as {_EXAMPLE}") from None
    clients = {
        bytes.fromhex(entry.sha256): Client(name, entry.read_only, entry.max_queued_tokens)
        for name, entry in entries.items()
    }
    if not clients or len(clients) < len(entries):
        raise InvalidRequest(
            f"--api-keys {path} holds {'one key twice' if clients else 'no key'}; give each client one"
        )
    return clients
