"""Export and import: one teacher's values as a store of their own, in a directory or in one file, with a card."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from string import Template
from typing import Any

from tvkd.store import info
from tvkd_shared.errors import InvalidRequest, NoStore, StoreUnavailable, TVKDError
from tvkd_shared.key import VALUE_DEFINITION
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.copying import CopyCounts, check_teacher, copy
from tvkd_shared.store.files import files_at
from tvkd_shared.store.format import read_format
from tvkd_shared.store.segment import SegmentEntry

Progress = Callable[[list[SegmentEntry]], Iterable[SegmentEntry]]

_CARD = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))


def export(
    store: StoreReader, output: str, teacher: str | None, *, segment_bytes: int, progress: Progress
) -> CopyCounts:
    """Write a teacher's values to a new directory or .zip file. Raises InvalidRequest when the output exists already,
    or when the store holds several teachers and no name is given."""
    target = Path(output)
    if target.exists():
        raise InvalidRequest(f"--output {output} exists already; name a new one")
    name = _chosen(store, teacher)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        with closing(open_store(folder, mantissa_bits=store.format.mantissa_bits)) as new:
            done = copy(store, new, name, segment_bytes=segment_bytes, progress=progress)
        (folder / "README.md").write_text(card(info.gather(StoreReader(folder)), name), encoding="utf-8")
        if target.suffix == ".zip":
            _zip(folder, target)
        else:
            folder.chmod(0o755)
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def take_in(
    source: StoreReader, store: str, teacher: str | None, *, segment_bytes: int, progress: Progress
) -> CopyCounts:
    """Copy a teacher's values, or all, into a store, which is made with the source's precision when it is missing.

    Raises as `copy` does. What is refused makes no store.
    """
    check_teacher(source, teacher)
    bits = None if _is_there(store) else source.format.mantissa_bits
    with closing(open_store(store, mantissa_bits=bits)) as target:
        return copy(source, target, teacher, segment_bytes=segment_bytes, progress=progress)


@contextmanager
def opened(place: str) -> Iterator[StoreReader]:
    """A store's directory, URL or .zip file, to read. Errors inside name the file, not where it was unpacked.

    Raises InvalidRequest for a file that is not an archive, or is encrypted; StoreUnavailable when there is no room to
    unpack it.
    """
    if "://" in place or Path(place).is_dir() or not Path(place).exists():
        yield StoreReader(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        _unpack(place, folder)
        root = _root(Path(folder))
        try:
            store = StoreReader(root)
            store.place = place
            yield store
        except TVKDError as error:
            error.message = error.message.replace(str(root), place)
            raise


def left_out(done: CopyCounts) -> str:
    return f"; {done.damaged} damaged blocks were left out" if done.damaged else ""


def card(contents: dict[str, Any], teacher: str) -> str:
    """README.md of an export, as dataset hubs show it."""
    summary = contents["teachers"][teacher]
    known = summary["provenance"] or {}
    certificates = [info.certificate_line(certificate) for certificate in contents["certificates"]] or ["none"]
    return _CARD.substitute(
        teacher_id=teacher,
        name=known.get("name", "unknown"),
        dtype=known.get("dtype", "unknown"),
        quantization=known.get("quantization") or "none",
        engine=f"{known.get('engine', 'unknown')} {known.get('engine_version', '')}".strip(),
        vocab_size=known.get("vocab_size", "unknown"),
        tokenizer_digest=known.get("tokenizer_digest") or "unknown",
        chat_template_digest=known.get("chat_template_digest") or "none",
        sequences=f"{summary['sequences']:,}",
        tokens=f"{summary['tokens']:,}",
        bytes_per_token=f"{summary['bytes_per_token']:.1f}",
        temperatures=", ".join(map(str, summary["temperatures"])),
        mantissa_bits=contents["mantissa_bits"],
        relative_error=f"{contents['relative_error']:.1e}",
        value_definition=known.get("value_definition", VALUE_DEFINITION),
        certificates="\n".join(f"- {line}" for line in certificates),
    )


def _is_there(store: str) -> bool:
    try:
        read_format(files_at(store))
    except NoStore:
        return False
    except Damaged:
        pass  # opening the store repairs it
    return True


def _unpack(place: str, folder: str) -> None:
    try:
        with zipfile.ZipFile(place) as archive:
            archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InvalidRequest(f"{place} is neither a store nor an archive of a store: {error}") from error
    except RuntimeError as error:
        raise InvalidRequest(
            f"{place} is encrypted, or packed as Python cannot unpack it; unpack it, and name the folder"
        ) from error
    except OSError as error:
        raise StoreUnavailable(
            f"{place} cannot be unpacked in {folder}: {error}; TMPDIR names a folder with more room"
        ) from error


def _root(folder: Path) -> Path:
    """Where in an unpacked archive the store is: at its top, or in the one folder there."""
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _chosen(store: StoreReader, teacher: str | None) -> str:
    if teacher is not None:
        return teacher
    held = store.teacher_ids()
    if len(held) != 1:
        raise InvalidRequest(f"store {store.place} holds {len(held)} teachers; name one: {', '.join(held)}")
    return held[0]


def _zip(folder: Path, target: Path) -> None:
    """One file, whole or not at all; not deflated, because the values are compressed already."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(folder))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
