"""Reading the log goes on at the next sound record, whatever lies before it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_records import TEACHER, key_of, record_of

from tvkd_server.store.log import Log
from tvkd_shared.store.block import blocks
from tvkd_shared.store.folder import Folder
from tvkd_shared.store.log import MAGIC, LogFile, LogReader, Name, Pending, records, to_bytes


def named(number):
    return [
        (Name(key_of(number), temperature), Pending(TEACHER, block))
        for temperature, block in blocks(record_of(number, (0.5,) if number % 2 else ()))
    ]


RECORDS = [one for number in range(6) for one in named(number)]
SPELLED = [to_bytes(*one) for one in RECORDS]


def contents(found):
    return {name: (pending.teacher, pending.block.tobytes()) for name, pending in found.items()}


RIGHT = contents(dict(RECORDS))


def test_what_is_written_is_read(tmp_path):
    log = Log(Folder(tmp_path))
    log.append(b"".join(SPELLED[:4]))
    log.rotate()
    log.append(b"".join(SPELLED[4:]))
    assert contents(LogReader(Folder(tmp_path)).pending()) == RIGHT


@given(at=st.integers(0, sum(map(len, SPELLED)) - 1), flipped=st.integers(1, 255))
def test_a_damaged_byte_costs_the_record_it_is_in_and_no_other(at, flipped):
    content = bytearray(b"".join(SPELLED))
    content[at] ^= flipped
    file = LogFile()
    file.extend(bytes(content))
    hit = next(n for n in range(len(SPELLED)) if at < sum(map(len, SPELLED[: n + 1])))
    assert contents(file.pending) == {name: one for name, one in RIGHT.items() if name != RECORDS[hit][0]}
    last = hit == len(SPELLED) - 1
    assert file.skipped == (0 if last else len(SPELLED[hit]))
    assert len(content) - file.end == (len(SPELLED[hit]) if last else 0)


@given(cut=st.integers(0, len(SPELLED[0])), junk=st.binary(max_size=30) | st.just(MAGIC) | st.just(MAGIC * 4))
def test_what_was_half_written_is_passed_over(cut, junk):
    found = [name for _, _, name, _ in records(SPELLED[0][:cut] + junk + SPELLED[1] + junk + SPELLED[2])]
    assert found[-2:] == [RECORDS[1][0], RECORDS[2][0]]
    assert len(found) == (3 if cut == len(SPELLED[0]) else 2)


@given(cuts=st.lists(st.integers(0, sum(map(len, SPELLED)))))
def test_read_while_it_grows_it_is_the_same(cuts):
    content, file = b"".join(SPELLED), LogFile()
    for reached in [*sorted(cuts), len(content)]:
        file.extend(content[file.end : reached])
    assert (contents(file.pending), file.skipped, file.end) == (RIGHT, 0, len(content))


def test_of_two_records_of_a_name_the_later_counts(tmp_path):
    name, first = RECORDS[0]
    later = Pending(TEACHER, first.block + np.float32(1))
    log = Log(Folder(tmp_path))
    for one in (first, later):
        log.append(to_bytes(name, one))
        log.rotate()
    assert contents(LogReader(Folder(tmp_path)).pending()) == contents({name: later})


def test_a_reader_forgets_the_files_that_were_dropped_and_reads_those_that_came(tmp_path):
    log, reader = Log(Folder(tmp_path)), LogReader(Folder(tmp_path))
    for spelled, (name, _) in zip(SPELLED, RECORDS, strict=True):
        log.append(spelled)
        assert list(reader.pending()) == [name]
        log.drop(log.rotate())
        assert not reader.pending()


def test_an_opened_log_writes_to_a_file_of_its_own_and_remembers_the_others(tmp_path):
    known: list[str] = []
    for spelled in SPELLED[:3]:
        log = Log(Folder(tmp_path))
        assert log.older == known
        log.append(spelled)
        known = log.rotate()
    log.drop(known)
    log = Log(Folder(tmp_path))
    log.append(SPELLED[0])
    assert not set(log.rotate()) & {known[0]}


def test_a_reader_that_knew_a_dropped_file_reads_the_one_that_a_later_writer_starts(tmp_path):
    reader = LogReader(Folder(tmp_path))
    log = Log(Folder(tmp_path))
    log.append(SPELLED[0] + SPELLED[1])
    assert len(reader.pending()) == 2
    log.drop(log.rotate())
    log = Log(Folder(tmp_path))
    log.append(SPELLED[2])
    assert list(reader.pending()) == [RECORDS[2][0]]


def test_after_a_failed_sync_of_its_folder_a_log_file_is_not_used(tmp_path, monkeypatch):
    log = Log(Folder(tmp_path))

    def fails(_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="Input/output"):
        disk.setattr("os.fsync", fails)
        log.append(SPELLED[0])
    log.append(SPELLED[1])
    assert list(LogReader(Folder(tmp_path)).pending()) == [RECORDS[1][0]]


@pytest.mark.parametrize("fails", ["os.write", "os.fdatasync"])
def test_of_an_append_that_failed_nothing_is_read(tmp_path, monkeypatch, fails):
    log = Log(Folder(tmp_path))
    log.append(SPELLED[0])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space"):
        disk.setattr(fails, full)
        log.append(SPELLED[1])
    log.append(SPELLED[2])
    assert len(log.rotate()) == 2, "nothing more is written to a file whose sync failed"
    assert list(LogReader(Folder(tmp_path)).pending()) == [RECORDS[0][0], RECORDS[2][0]]
