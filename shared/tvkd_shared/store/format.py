"""What a store is: its version and precision, kept in `store.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvkd_shared.errors import NoStore, StoreUnavailable
from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.files import Files

FORMAT_NAME = "tvkd-store"
FORMAT_VERSION = 3
STORE_FILE = "store.json"
FULL_MANTISSA = 23


@dataclass(frozen=True, slots=True)
class Format:
    """mantissa_bits: how many of float32's 23 the numbers keep; 23 is float32 itself."""

    mantissa_bits: int = FULL_MANTISSA

    @property
    def relative_error(self) -> float:
        """Largest |stored − computed| / |computed|: half of the last kept bit."""
        return 0.0 if self.mantissa_bits == FULL_MANTISSA else 2.0 ** -(self.mantissa_bits + 1)

    def to_bytes(self) -> bytes:
        return document.to_bytes(
            {"format": FORMAT_NAME, "version": FORMAT_VERSION, "mantissa_bits": self.mantissa_bits}
        )


def read_format(files: Files) -> Format:
    """The format of the store at `files`.

    Raises NoStore when there is none, StoreUnavailable for another version, Damaged when its file fails its check.
    """
    try:
        attributes = document.from_bytes(files.read(STORE_FILE), f"{files}/{STORE_FILE}")
    except FileNotFoundError:
        if files.names("commits"):
            raise Damaged(f"{STORE_FILE} is lost") from None
        if files.names("segments") or (not files.remote and "log.sqlite" in files.names("")):
            raise _another_version(files, 1) from None
        raise NoStore(f"there is no store at {files}: it has no {STORE_FILE}") from None
    check_version(attributes, str(files))
    return Format(int(attributes["mantissa_bits"]))


def check_version(attributes: Mapping[str, Any], name: str) -> None:
    """Raises StoreUnavailable when a document of this name was written in another format or version."""
    if (attributes.get("format"), attributes.get("version")) != (FORMAT_NAME, FORMAT_VERSION):
        raise _another_version(name, attributes.get("version"))


def _another_version(name: object, version: object) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store {name} has format version {version}; this program reads version {FORMAT_VERSION}: "
        "use the tvkd that wrote it, or fill a new store"
    )
