"""Export and import: one teacher's values as a store of their own, in a directory or in one file, with a card."""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

from tvkd.store import info
from tvkd_server.store.copying import Copied, copy, teachers
from tvkd_server.store.publisher import Publisher
from tvkd_server.store.store import make_store
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.key import VALUE_DEFINITION
from tvkd_shared.store import StoreReader
from tvkd_shared.store.catalog import SegmentEntry
from tvkd_shared.store.folder import Folder

Progress = Callable[[list[SegmentEntry]], Iterable[SegmentEntry]]

_CARD = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))


def export(store: StoreReader, output: str, teacher: str | None, *, segment_bytes: int, progress: Progress) -> Copied:
    """Write a teacher's values to a new directory or .zip file. Raises InvalidRequest when something is there already,
    or when the store holds several teachers and none is named."""
    target = Path(output)
    if target.exists():
        raise InvalidRequest(f"--output {output} is there already; name a new one")
    name = _chosen(store, teacher)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        make_store(Folder(folder), store.format.mantissa_bits)
        new = Publisher(folder)
        done = copy(store, new, name, segment_bytes=segment_bytes, progress=progress)
        (folder / "README.md").write_text(card(info.gather(new), name), encoding="utf-8")
        if target.suffix == ".zip":
            _zip(folder, target)
        else:
            folder.chmod(0o755)
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


@contextmanager
def opened(place: str) -> Iterator[StoreReader]:
    """A store's directory, URL or .zip file, to read. Raises InvalidRequest for a file that is no archive."""
    if "://" in place or Path(place).is_dir() or not Path(place).exists():
        yield StoreReader(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(place) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError) as error:
            raise InvalidRequest(f"{place} is no store and no archive of one: {error}") from error
        yield StoreReader(folder)


def left_out(done: Copied) -> str:
    return f"; {done.damaged} damaged blocks were left out" if done.damaged else ""


def card(said: dict[str, Any], teacher: str) -> str:
    """README.md of an export, as dataset hubs show it."""
    own = said["teachers"][teacher]
    known = own["provenance"] or {}
    certificates = [info.certificate_line(one) for one in said["certificates"]] or ["none"]
    return _CARD.substitute(
        teacher_id=teacher,
        name=known.get("name", "unknown"),
        dtype=known.get("dtype", "unknown"),
        quantization=known.get("quantization") or "none",
        engine=f"{known.get('engine', 'unknown')} {known.get('engine_version', '')}".strip(),
        vocab_size=known.get("vocab_size", "unknown"),
        tokenizer_digest=known.get("tokenizer_digest") or "unknown",
        chat_template_digest=known.get("chat_template_digest") or "none",
        sequences=f"{own['sequences']:,}",
        tokens=f"{own['tokens']:,}",
        bytes_per_token=f"{own['bytes_per_token']:.1f}",
        temperatures=", ".join(map(str, own["temperatures"])),
        mantissa_bits=said["mantissa_bits"],
        relative_error=f"{said['relative_error']:.1e}",
        value_definition=known.get("value_definition", VALUE_DEFINITION),
        certificates="\n".join(f"- {line}" for line in certificates),
    )


def _chosen(store: StoreReader, teacher: str | None) -> str:
    if teacher is not None:
        return teacher
    held = teachers(store)
    if len(held) != 1:
        raise InvalidRequest(f"store {store.place} holds {len(held)} teachers; name one: {', '.join(held)}")
    return held[0]


def _zip(folder: Path, target: Path) -> None:
    """One file, whole or not at all; stored, for the values are compressed already."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(folder))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
