"""`verify` finds one flipped byte anywhere in any file, and nothing in a sound store."""

from contextlib import closing

import pytest
from stored_records import TEACHER, as_killed, flip, numbered

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store import verify as verify_module
from tvkd_shared.store.certificate import Certificate, write_certificate
from tvkd_shared.store.compact import compact
from tvkd_shared.store.folder import Folder
from tvkd_shared.store.gc import collect
from tvkd_shared.store.verify import verify
from tvkd_shared.wire import TeacherInfo

INFO = TeacherInfo(
    id=TEACHER, name="n", dtype="float32", vocab_size=8, longest_sequence=16, engine="e", engine_version="1",
    temperatures=(0.5, 2.0),
)  # fmt: skip


@pytest.fixture
def store_path(tmp_path):
    """Every kind of file: sealed and pending blocks, a checkpoint, a teacher, a certificate, an index."""
    with closing(open_store(tmp_path / "live")) as store:
        store.add_teacher(INFO.id, INFO.model_dump(mode="json"))
        for first in (0, 3):
            store.put(TEACHER, numbered(range(first, first + 3), (0.5,)))
            store.seal()
        compact(store)
        write_certificate(
            store.files,
            Certificate(
                teacher=TEACHER, made=1.0, commit=1, sequences=1, numbers=9, reference="r", errors={"1.0": 0.0}
            ),
        )
        store.save_index()
        store.put(TEACHER, numbered(range(6, 9)))
        yield as_killed(tmp_path / "live", tmp_path / "killed")


def test_a_sound_store_has_no_problem(store_path):
    assert verify(StoreReader(store_path)) == []


def test_one_flipped_byte_in_any_file_is_found_and_named(store_path, monkeypatch):
    monkeypatch.setattr(verify_module, "_PAUSE_SECONDS", 0.0)
    live = set(StoreReader(store_path).catalog.segments)
    files = [path for path in sorted(store_path.rglob("*")) if path.is_file() and path.name != "recent.sqlite-shm"]
    files = [
        path for path in files if "segments" not in path.parts or path.parts[path.parts.index("segments") + 1] in live
    ]
    assert {path.relative_to(store_path).parts[0] for path in files} == {
        "store.json", "commits", "checkpoints", "segments", "teachers", "certificates", "index",
        "recent.sqlite", "recent.sqlite-wal", "recent.json",
    }  # fmt: skip
    for file in files:
        size = file.stat().st_size
        for position in sorted({0, size // 3, size // 2, size - 1, *range(5, size, 977)}):
            flip(file, position)
            try:
                found = verify(StoreReader(store_path))
            except StoreUnavailable as error:  # a version that is another one
                assert "version" in str(error)
            else:
                name = str(file.relative_to(store_path))
                assert any(problem.file in name or name in problem.file for problem in found), (name, position, found)
            flip(file, position)


def test_a_lost_file_is_found(store_path):
    (name, *_) = StoreReader(store_path).catalog.segments
    for lost in (f"segments/{name}/offsets/c/0", f"segments/{name}/zarr.json", "store.json"):
        content = (store_path / lost).read_bytes()
        (store_path / lost).unlink()
        assert lost.removesuffix("/c/0") in {problem.file for problem in verify(StoreReader(store_path))}
        (store_path / lost).write_bytes(content)


def test_a_commit_that_is_collected_between_listing_and_reading_is_no_problem(store_path):
    class Collecting(Folder):
        def names(self, folder, after=""):
            found = super().names(folder, after)
            (self.root / "commits" / "000000000001.json").unlink(missing_ok=True)
            return found

    store = StoreReader(store_path)
    store.files = Collecting(store_path)
    assert verify(store) == []
    assert not (store_path / "commits" / "000000000001.json").exists()


def test_segments_that_are_compacted_and_collected_meanwhile_are_no_problem_and_what_they_became_is_read(tmp_path):
    with closing(open_store(tmp_path / "values")) as store:
        for number in range(6):
            store.put(TEACHER, numbered([number]))
            store.seal()
    read = []

    def progress(entries):
        for entry in entries:
            read.append(entry.name)
            yield entry
            with closing(open_store(tmp_path / "values")) as other:
                compact(other)
                collect(other, grace_seconds=0.0)

    store = StoreReader(tmp_path / "values")
    assert verify(store, progress=progress) == []
    assert set(store.catalog.segments) < set(read)
