"""Whatever happens to a store, in any order, it reads as a dict that keeps what was put first."""

import resource
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stored_records import MEMORY, TEACHER, as_killed, bits, found_in, key_of, record_of

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.compact import compact
from tvkd_shared.store.gc import collect

NUMBERS = range(7)
KEYS = [key_of(number) for number in NUMBERS]
TEMPERATURES = (0.5, 1.0, 3.25)
batches = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.sets(st.sampled_from([0.5, 3.25]))), min_size=1, max_size=4
)


limits = st.tuples(st.sampled_from([resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE]), st.integers(0, 4000))


@contextmanager
def disk_that_fails(limit):
    """As a disk that is full after so many bytes of a file, or a process that may open no more files."""
    kind, most = limit
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        with suppress(StoreUnavailable):
            yield
    finally:
        resource.setrlimit(kind, before)


class StoreIsADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.folder.name, "0")
        self.expected: dict[int, dict[object, bytes]] = {}
        self.open()

    def open(self):
        self.store, self.reader = open_store(self.path), StoreReader(self.path)

    def close(self):
        self.reader.close()
        self.store.close()

    @rule(batch=batches)
    def put(self, batch):
        records = [(number, record_of(number, tuple(further), variant)) for number, variant, further in batch]
        for number, record in records:
            self.expected[number] = bits(record) | self.expected.get(number, {})
        self.store.put(TEACHER, [(key_of(number), record) for number, record in records])

    @rule(batch=batches, limit=limits)
    def put_while_the_disk_fails(self, batch, limit):
        """What a put that failed has kept is not known; what was there is, and of each block there is one."""
        before = dict(self.expected)
        with disk_that_fails(limit):
            self.put(batch)
            return
        for number in {number for number, _, _ in batch}:
            found = found_in(self.store, [key_of(number)], TEMPERATURES)[0] or {}
            assert before.get(number, {}).items() <= found.items() <= self.expected.pop(number).items()
            self.expected |= {number: found} if found else {}

    @rule()
    def seal(self):
        self.store.seal()

    @rule(segment_bytes=st.sampled_from([10_000, 1 << 28]))
    def compact(self, segment_bytes):
        compact(self.store, segment_bytes=segment_bytes)

    @rule()
    def collect(self):
        collect(self.store, grace_seconds=0.0)

    @rule()
    def reopen(self):
        self.close()
        self.open()

    @rule(lose_the_index=st.booleans(), seal=st.booleans())
    def crash(self, lose_the_index, seal):
        """Go on with the files as they are now, as after kill -9."""
        if seal:
            self.store.seal()
        crashed = as_killed(self.path, self.path.with_name(str(int(self.path.name) + 1)))
        if lose_the_index:
            (crashed / "index").unlink(missing_ok=True)
        self.close()
        self.path = crashed
        self.open()

    @rule(task=st.sampled_from(["seal", "compact", "collect"]), limit=limits)
    def work_while_the_disk_fails(self, task, limit):
        with disk_that_fails(limit):
            {"seal": self.seal, "compact": lambda: compact(self.store), "collect": self.collect}[task]()

    @invariant()
    def reads_as_the_dict(self):
        expected = [self.expected.get(number) for number in NUMBERS]
        lengths = [record_of(number).length for number in self.expected]
        with closing(StoreReader(self.path)) as fresh:
            for source in (self.store, self.reader, fresh):
                assert found_in(source, KEYS, TEMPERATURES) == expected
                counts = source.counts()
                assert (counts.sequences, counts.tokens, counts.corrupt) == (len(lengths), sum(lengths), 0)

    def teardown(self):
        self.close()
        self.folder.cleanup()


StoreIsADict.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestStoreIsADict = StoreIsADict.TestCase
