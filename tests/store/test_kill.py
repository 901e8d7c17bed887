"""kill -9 at any moment: what was acknowledged is there to the bit, and nothing is torn."""

import random
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from stored_records import MEMORY, TEACHER, as_killed, bits, found_in, key_of, record_of
from writing_process import some

from tvkd_shared.store import StoreReader, open_store

WRITER = Path(__file__).with_name("writing_process.py")
KILLS = 6


def right(numbers):
    return [bits(record_of(n, (0.5,) if n % 2 else ())) for n in numbers]


def read(source, numbers):
    return found_in(source, [key_of(n) for n in numbers], [0.5])


def survived(store, last, end):
    """Whether all up to `last` are there, to the bit, and each that comes after is right in what it has, or missing."""
    found, counts = read(store, range(end)), store.counts()
    assert found[: last + 1] == right(range(last + 1))
    for one, whole in zip(found[last + 1 :], right(range(last + 1, end)), strict=True):
        assert one is None or one.items() <= whole.items()
    assert (counts.sequences, counts.corrupt) == (sum(one is not None for one in found), 0)
    return True


def write_until_killed(path: Path, first: int, seconds: float) -> int:
    """Runs the writing process and kills it; returns the last number that it acknowledged."""
    process = subprocess.Popen([sys.executable, WRITER, path, str(first)], stdout=subprocess.PIPE, text=True)
    acknowledged = [process.stdout.readline()]
    threading.Timer(seconds, process.kill).start()
    acknowledged += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return int([line for line in acknowledged if line.endswith("\n")][-1])


@pytest.mark.crash
def test_what_was_acknowledged_survives_kill_9(tmp_path):
    moment = random.Random(0)
    next_number = 0
    for _ in range(KILLS):
        last = write_until_killed(tmp_path, next_number, moment.uniform(0.0, 0.6))
        for opened in (StoreReader, open_store):
            with closing(opened(tmp_path)) as store:
                assert survived(store, last, last + 7)
        next_number = last + 1
    assert len(list((tmp_path / "segments").iterdir())) > KILLS


@pytest.fixture
def left():
    """A folder with what a killed process left: 0 … 2 and 3 sealed, 4 and 5 recent."""
    with TemporaryDirectory(dir=MEMORY) as folder, closing(open_store(Path(folder, "live"))) as store:
        for numbers in ([0, 1, 2], [3]):
            store.put(TEACHER, some(numbers))
            store.seal()
        store.put(TEACHER, some([4, 5]))
        as_killed(Path(folder, "live"), Path(folder, "left"))
        with closing(open_store(Path(folder, "source"))) as source:
            source.put(TEACHER, some(range(12)))
        yield Path(folder)


@pytest.mark.crash
@pytest.mark.parametrize("task, end, least", [("fill", 12, 100), ("tidy", 8, 100), ("take_in", 12, 60)])
def test_a_kill_at_every_file_operation_loses_and_tears_nothing(left, task, end, least):
    with subprocess.Popen(
        [sys.executable, WRITER, "--at", left, task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as children:
        kills = 0
        while True:
            path = shutil.copytree(left / "left", left / str(kills + 1))
            children.stdin.write(f"{kills + 1}\n")
            children.stdin.flush()
            last, signal = map(int, children.stdout.readline().split())
            with closing(StoreReader(path)) as reader:
                assert survived(reader, last, end), kills
            with closing(open_store(path)) as store:
                assert survived(store, last, end), kills
                store.put(TEACHER, some(range(end)))
            with closing(StoreReader(path)) as reader:
                assert read(reader, range(end)) == right(range(end))
                assert (reader.counts().sequences, reader.counts().corrupt) == (end, 0)
            shutil.rmtree(path)
            if signal == 0:
                break
            assert signal == 9
            kills += 1
        children.stdin.close()
    assert last == end - 1 and kills >= least


def test_a_crash_between_publishing_and_deleting_loses_and_doubles_nothing(tmp_path):
    with closing(open_store(tmp_path / "live")) as store:
        store.put(TEACHER, some(range(30)))
        crashed = as_killed(tmp_path / "live", tmp_path / "crashed")
        store.seal()
        for folder in ("segments", "commits"):
            shutil.copytree(tmp_path / "live" / folder, crashed / folder)
    with closing(open_store(crashed)) as store:
        assert survived(store, 29, 30)
    assert StoreReader(crashed).recent_rows() == [] and len(list((crashed / "segments").iterdir())) == 2


def test_a_published_segment_that_is_damaged_does_not_cost_its_recent_blocks(tmp_path):
    with closing(open_store(tmp_path / "live")) as store:
        store.put(TEACHER, some(range(30)))
        crashed = as_killed(tmp_path / "live", tmp_path / "crashed")
        store.seal()
        for folder in ("segments", "commits"):
            shutil.copytree(tmp_path / "live" / folder, crashed / folder)
    for shard in crashed.glob("segments/*/values/c/0/0"):
        shard.write_bytes(shard.read_bytes()[:-100])
    for _ in range(2):
        with closing(open_store(crashed)) as store:
            assert read(store, range(30)) == right(range(30))
