"""Commits are read in one order by everyone, whoever made them."""

import pytest

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import document
from tvkd_shared.store.catalog import CHECKPOINTS, COMMITS, Catalog, Commit, numbered
from tvkd_shared.store.folder import Folder
from tvkd_shared.store.segment import SegmentEntry


def entry(name, order=1):
    return SegmentEntry(
        name=name, teacher="t", columns=("value_1",), records=1, states=2, bytes=9, metadata_crc32=0, order=order
    )


def commit(files, number, *added, removed=()):
    return files.create(
        numbered(COMMITS, number),
        Commit(writer="w", add=[entry(name, number) for name in added], remove=dict.fromkeys(removed, 1.0)).to_bytes(),
    )


@pytest.fixture
def files(tmp_path):
    return Folder(tmp_path)


def test_of_two_that_create_one_commit_one_succeeds(files):
    assert commit(files, 1, "a") and not commit(files, 1, "b")
    assert list(Catalog(files).segments) == ["a"]


def test_two_catalogs_that_commit_in_turn_hold_the_same(files):
    one, two = Catalog(files), Catalog(files)
    for number in range(1, 20):
        mine = one if number % 2 else two
        mine.refresh()
        assert mine.number == number - 1
        commit(files, number, f"s{number}", removed=[f"s{number - 3}"])
    one.refresh()
    two.refresh()
    assert one.segments == two.segments == Catalog(files).segments
    assert list(one.segments) == ["s17", "s18", "s19"] and one.segments["s18"].order == 18


def test_a_segment_that_was_removed_does_not_come_back(files):
    commit(files, 1, "a", "b")
    commit(files, 2, "c", removed=["a"])
    commit(files, 3, "a")
    catalog = Catalog(files)
    assert (set(catalog.segments), catalog.removed) == ({"b", "c"}, {"a": 1.0})
    catalog.write_checkpoint()
    assert (Catalog(files).segments, Catalog(files).removed) == (catalog.segments, catalog.removed)


def test_a_segment_that_is_live_keeps_the_order_of_its_first_commit(files):
    commit(files, 1, "a")
    commit(files, 2, "a")
    assert Catalog(files).segments["a"].order == 1


def test_an_opening_starts_at_the_last_checkpoint_and_reads_on(files):
    for number in range(1, 8):
        commit(files, number, f"s{number}")
        if number in (3, 5):
            Catalog(files).write_checkpoint()
    behind = Catalog(files)
    behind.segments, behind.number = {}, 0
    files.remove([numbered(COMMITS, number) for number in range(1, 6)])
    for catalog in (Catalog(files), behind):
        catalog.refresh()
        assert (len(catalog.segments), catalog.number, catalog.damaged) == (7, 7, set())


def test_a_gap_that_no_checkpoint_fills_is_damage_and_what_comes_after_counts(files):
    for number in range(1, 6):
        commit(files, number, f"s{number}")
    files.remove([numbered(COMMITS, 3)])
    catalog = Catalog(files)
    assert (set(catalog.segments), catalog.damaged) == ({"s1", "s2", "s4", "s5"}, {numbered(COMMITS, 3)})
    assert catalog.number == 5


def test_commits_that_are_collected_while_they_are_read_are_no_damage(files, monkeypatch):
    for number in range(1, 4):
        commit(files, number, f"s{number}")
    behind, ahead = Catalog(files), Catalog(files)
    for number in range(4, 8):
        commit(files, number, f"s{number}")
    names = files.names

    def and_then_collect(folder, after=""):
        found = names(folder, after)
        if folder == COMMITS and files.names is not names:
            monkeypatch.undo()
            ahead.write_checkpoint()
            files.remove([numbered(COMMITS, number) for number in range(1, 6)])
        return found

    ahead.refresh()
    monkeypatch.setattr(files, "names", and_then_collect)
    behind.refresh()
    assert (len(behind.segments), behind.number, behind.damaged) == (7, 7, set())


def test_a_refresh_that_fails_takes_nothing_in_and_the_next_takes_all(files, monkeypatch):
    commit(files, 1, "a")
    catalog = Catalog(files)
    commit(files, 2, "b", removed=["a"])
    commit(files, 3, "c")
    read = files.read

    def fails(name, start=0, stop=None):
        if name == numbered(COMMITS, 3):
            raise StoreUnavailable("the disk fails")
        return read(name, start, stop)

    with monkeypatch.context() as disk, pytest.raises(StoreUnavailable):
        disk.setattr(files, "read", fails)
        catalog.refresh()
    assert (list(catalog.segments), catalog.number) == (["a"], 1)
    catalog.refresh()
    assert list(catalog.segments) == ["b", "c"]


def test_what_is_not_a_commit_s_file_is_passed_over(files):
    files.write({"commits/README.txt": b"", "checkpoints/notes": b"", "commits/x.json": b""})
    commit(files, 1, "a")
    assert list(Catalog(files).segments) == ["a"]


def test_nothing_is_read_again_while_nothing_was_added(files, monkeypatch):
    commit(files, 1, "a")
    catalog = Catalog(files)
    catalog.refresh()
    with monkeypatch.context() as disk:
        disk.setattr(files, "names", None)
        catalog.refresh()
    commit(files, 2, "b")
    catalog.refresh()
    assert list(catalog.segments) == ["a", "b"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(files):
    for number in range(1, 4):
        commit(files, number, f"s{number}")
        Catalog(files).write_checkpoint()
    files.write({numbered(CHECKPOINTS, 3): b"{}"})
    files.remove([numbered(COMMITS, 1), numbered(COMMITS, 2)])
    catalog = Catalog(files)
    assert (len(catalog.segments), catalog.number, catalog.damaged) == (3, 3, {numbered(CHECKPOINTS, 3)})


def test_a_commit_of_another_version_is_refused_and_not_damage(files):
    said = {"format": "tvkd-store", "version": 4, "writer": "w", "more": True}
    files.create(numbered(COMMITS, 1), document.to_bytes(said))
    with pytest.raises(StoreUnavailable, match="version 4; this program reads version 3"):
        Catalog(files)
