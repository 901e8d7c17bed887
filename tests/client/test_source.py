import multiprocessing
import pickle
from contextlib import closing

import numpy as np
import pytest

from tvkd_client.source import ServerSource, StoreSource, check_certificate, grouped, teacher_of
from tvkd_shared.errors import InvalidRequest, NotCached, StoreUnavailable, TeacherMismatch
from tvkd_shared.key import completion_keys

PROMPTS = [[40, 41], [42], [40, 41], [40, 41]]
COMPLETIONS = [[43, 44], [45], [46], [43, 44]]


def bits(records) -> list[dict[str, bytes]]:
    return [
        {f"value {tau}": row.tobytes() for tau, row in record.values.items()}
        | {"action logits": record.action_logits.tobytes(), "entropies": record.entropies.tobytes()}
        for record in records
    ]


@pytest.fixture
def served(server):
    """Both sources of the same store, filled with the pairs."""
    online = ServerSource(server.url, temperatures=[0.7])
    online.fill(PROMPTS, COMPLETIONS)
    return online, StoreSource(server.store_path, temperatures=[0.7])


def test_a_prompt_and_a_pair_asked_twice_travel_once():
    items, places = grouped(PROMPTS, COMPLETIONS)
    assert [item.prompt_token_ids for item in items] == [[40, 41], [42]]
    assert items[0].completions == [[43, 44], [46]]
    assert places == [(0, 0), (1, 0), (0, 1), (0, 0)]


def test_store_and_server_give_the_same_bits(served):
    online, offline = served
    assert online.teacher_id == offline.teacher_id
    assert bits(online.fetch(PROMPTS, COMPLETIONS)) == bits(offline.fetch(PROMPTS, COMPLETIONS))


def test_records_come_in_the_order_of_the_question(served):
    for source in served:
        records = source.fetch(PROMPTS, COMPLETIONS)
        assert [record.length for record in records] == [2, 1, 1, 2]
        for record, prompt, completion in zip(records, PROMPTS, COMPLETIONS, strict=True):
            assert bits([record]) == bits(source.fetch([prompt], [completion]))
        assert source.fetch([], []) == []


def test_numpy_token_ids_are_token_ids(served):
    for source in served:
        assert bits(source.fetch([np.array([40, 41])], [np.array([43, 44])])) == bits(
            source.fetch([[40, 41]], [[43, 44]])
        )


def test_a_source_crosses_pickle_and_fork(served):
    for source in served:
        here = bits(source.fetch(PROMPTS, COMPLETIONS))
        assert bits(pickle.loads(pickle.dumps(source)).fetch(PROMPTS, COMPLETIONS)) == here
        queue = multiprocessing.get_context("fork").SimpleQueue()
        child = multiprocessing.get_context("fork").Process(
            target=lambda source=source, queue=queue: queue.put(bits(source.fetch(PROMPTS, COMPLETIONS)))
        )
        child.start()
        assert queue.get() == here
        child.join()


def test_what_the_store_lacks_is_counted(served, server):
    with pytest.raises(NotCached, match=r"1 of 5 completions are not in store .*`tvkd prefetch`"):
        served[1].fetch([*PROMPTS, [47]], [*COMPLETIONS, [48]])
    other = StoreSource(server.store_path, temperatures=[0.71])
    with pytest.raises(NotCached, match=r"4 of 4 .* temperatures 1\.0, 0\.71"):
        other.fetch(PROMPTS, COMPLETIONS)


def test_another_teacher_than_the_one_named_is_refused(server, tmp_path):
    with pytest.raises(TeacherMismatch, match=r"f{32}"):
        ServerSource(server.url, teacher_id="f" * 32).fetch([[1]], [[2]])
    with pytest.raises(TeacherMismatch, match=r"has no teacher f{32}; it holds"):
        StoreSource(server.store_path, teacher_id="f" * 32).fetch([[1]], [[2]])
    with pytest.raises(StoreUnavailable, match="no store at"):
        StoreSource(tmp_path).fetch([[1]], [[2]])


def test_a_store_of_two_teachers_wants_one_named(served, tmp_path):
    from tvkd_shared.store import open_store

    ids = ["a" * 32, "b" * 32]
    store = open_store(tmp_path / "two")
    info = served[0].client.teacher()
    for teacher in ids:
        store.add_teacher(teacher, info.model_copy(update={"id": teacher}).model_dump(mode="json"))
    store.close()
    for named in (None, info.name):
        with pytest.raises(InvalidRequest, match=rf"several teachers.*--teacher-id.*a{{32}} \({info.name}\), b{{32}}"):
            _ = StoreSource(tmp_path / "two", teacher_id=named).teacher_id
    assert StoreSource(tmp_path / "two", teacher_id=ids[1]).teacher_id == ids[1]


def test_a_model_is_named_by_its_name_where_one_has_it(served, server):
    online, offline = served
    name = online.client.teacher().name
    for source in (ServerSource(server.url, teacher_id=name), StoreSource(server.store_path, teacher_id=name)):
        assert source.teacher_id == offline.teacher_id
        assert len(source.fetch(PROMPTS, COMPLETIONS)) == len(PROMPTS)
    with pytest.raises(TeacherMismatch, match=f"has teacher {name} .*, not other"):
        ServerSource(server.url, teacher_id="other").fetch(PROMPTS, COMPLETIONS)
    with pytest.raises(TeacherMismatch, match=rf"has no teacher other; it holds .* \({name}\)"):
        _ = StoreSource(server.store_path, teacher_id="other").teacher_id


def test_what_a_store_lacks_is_counted_by_its_index(served, server):
    _, offline = served
    assert offline.missing(PROMPTS, COMPLETIONS) == 0
    assert offline.missing([*PROMPTS, [47], [47]], [*COMPLETIONS, [49], [49]]) == 2
    assert StoreSource(server.store_path, temperatures=[0.73]).missing(PROMPTS, COMPLETIONS) == 4


@pytest.fixture
def one_value(served, tmp_path):
    """A store of one value, and its record."""
    from tvkd_shared.store import open_store

    teacher = served[0].client.teacher()
    (record,) = served[0].fetch(PROMPTS[:1], COMPLETIONS[:1])
    with closing(open_store(tmp_path / "one")) as store:
        store.add_teacher(teacher.id, teacher.model_dump(mode="json"))
        store.put(teacher.id, [(completion_keys(teacher.id, PROMPTS[0], COMPLETIONS[:1])[0], record)])
    return tmp_path / "one", teacher, record


def test_a_segment_that_lacks_a_column_lacks_the_completion(one_value):
    place, _, _ = one_value
    assert [StoreSource(place, [tau]).missing(PROMPTS[:1], COMPLETIONS[:1]) for tau in (0.7, 0.73)] == [0, 1]
    assert not StoreSource(place).reader.recent_rows()


def test_values_are_read_by_their_teacher_s_id_when_its_provenance_is_damaged(one_value):
    place, teacher, record = one_value
    (place / "teachers" / f"{teacher.id}.json").write_text("{}")
    for source in (StoreSource(place, [0.7]), StoreSource(place, [0.7], teacher_id=teacher.id)):
        assert source.teacher_id == teacher.id
        assert bits(source.fetch(PROMPTS[:1], COMPLETIONS[:1])) == bits([record])
        with pytest.raises(StoreUnavailable, match=rf"{teacher.id} is damaged or lost.*other_vocabulary") as told:
            teacher_of(source)
        assert "\n" not in str(told.value)


def test_what_is_asked_of_a_store_s_teacher_is_read_from_the_store_that_is_open(one_value):
    place, teacher, _ = one_value
    source = StoreSource(place)
    assert source.teacher_id == teacher.id
    for kept in ("store.json", "commits", "segments", "index"):  # what an opening reads
        (place / kept).rename(place.parent / kept)
    assert teacher_of(source) == teacher
    with pytest.raises(InvalidRequest, match="no certificate"):
        check_certificate(source, 0.1)
