"""kill -9 at any moment: what was acknowledged is there to the bit, and nothing is torn."""

import random
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from stored_records import bits, key_of, record_of

from tvkd_server.store import Store
from tvkd_shared.store import StoreReader

WRITER = Path(__file__).with_name("writing_process.py")
KILLS = 10


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
    for kill in range(KILLS):
        last = write_until_killed(tmp_path, next_number, moment.uniform(0.0, 0.6))
        # Each other time the next writing process is the one to recover.
        for opened in (StoreReader, Store) if kill % 2 else (StoreReader,):
            with closing(opened(tmp_path)) as store:
                found = store.get([key_of(n) for n in range(last + 7)], [0.5])
                counts = store.counts()
            right = [bits(record_of(n, (0.5,) if n % 2 else ())) for n in range(last + 7)]
            assert [bits(record) for record in found[: last + 1]] == right[: last + 1]
            # A put that was not acknowledged is there whole or not at all.
            assert [bits(record) for record in found[last + 1 :]] in (
                right[last + 1 : last + 4] + [None] * 3,
                [None] * 6,
            )
            assert (counts.sequences, counts.corrupt) == (sum(record is not None for record in found), 0)
        next_number = last + 1
    assert len(list((tmp_path / "segments").iterdir())) > KILLS
    assert not list((tmp_path / "tmp").iterdir())


def test_a_crash_between_publishing_a_segment_and_indexing_it_loses_and_doubles_nothing(tmp_path):
    numbers = range(30)
    with closing(Store(tmp_path / "live")) as store:
        store.put([(key_of(n), record_of(n, (0.5,))) for n in numbers])
        crashed = shutil.copytree(tmp_path / "live", tmp_path / "crashed", ignore=shutil.ignore_patterns("*-shm"))
        store.seal()
        shutil.copytree(tmp_path / "live" / "segments", crashed / "segments", dirs_exist_ok=True)
    shutil.copytree(crashed / "segments" / "000000000001", crashed / "tmp" / "000000000003")
    with closing(Store(crashed)) as store:
        found = store.get([key_of(n) for n in numbers], [0.5])
        assert [bits(record) for record in found] == [bits(record_of(n, (0.5,))) for n in numbers]
        assert store.counts().sequences == len(numbers)
        store.seal()
    assert sorted(path.name for path in (crashed / "segments").iterdir()) == ["000000000001", "000000000002"]
    assert not list((crashed / "tmp").iterdir())


def test_a_published_segment_that_is_damaged_does_not_cost_its_pending_blocks(tmp_path):
    with closing(Store(tmp_path / "live")) as store:
        store.put([(key_of(n), record_of(n)) for n in range(30)])
        crashed = shutil.copytree(tmp_path / "live", tmp_path / "crashed", ignore=shutil.ignore_patterns("*-shm"))
        store.seal()
        shutil.copytree(tmp_path / "live" / "segments", crashed / "segments", dirs_exist_ok=True)
    shard = crashed / "segments" / "000000000001" / "values" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-100])
    with closing(Store(crashed)) as store:
        assert [bits(record) for record in store.get([key_of(n) for n in range(30)])] == [
            bits(record_of(n)) for n in range(30)
        ]
