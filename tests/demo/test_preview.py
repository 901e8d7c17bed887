"""`tvkd preview`: what the command prints of a small store is what the store's numbers say."""

import json
import statistics
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest

from tvkd.cli import main as tvkd
from tvkd_client import processes
from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.wire import TeacherInfo

PAIRS = [("w8 w9 ", "w10 "), ("w11 ", "w12 w13 w14 "), ("w15 w16 w17 ", "w18 "), ("w30 ", "w31 "), ("w32 ", "w33 w34 ")]


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()] + [2]


def filled(folder, teacher: TeacherInfo, seed: int, pairs=PAIRS) -> list[tuple[Record, Record]]:
    random = np.random.default_rng(seed)

    def record(text: str) -> Record:
        T = len(ids(text))
        V, q, H = (random.normal(0, 1, n).astype(np.float32) for n in (T + 1, T, T + 1))
        return Record.of({1.0: V + 9}, q, abs(H))

    records = [(record(chosen), record(rejected)) for chosen, rejected in pairs]
    with closing(open_store(folder)) as store:
        store.add_teacher(teacher.id, teacher.model_dump(mode="json"))
        for sides, both in zip(pairs, records, strict=True):
            keys = completion_keys(teacher.id, [4, 20, 21, 5], list(map(ids, sides)))
            store.put(teacher.id, list(zip(keys, both, strict=True)))
    return records


@pytest.fixture
def made(small_store, tmp_path):
    """Flags of a store of five pairs, the records in it, and the model of the small store."""
    rows = [{"prompt": "<user> w20 w21 <assistant> ", "chosen": c, "rejected": r} for c, r in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = TeacherInfo.model_validate(StoreReader(small_store.path).teachers()["0" * 32])
    records = filled(tmp_path / "store", teacher, 0)
    flags = ["--dataset", tmp_path / "pairs.jsonl", "--tokenizer", small_store.tokenizer, "--store", tmp_path / "store"]
    return flags, records, teacher


def run(*arguments) -> int:
    return tvkd(["preview", *(str(argument) for argument in arguments)])


def answer(capsys, *arguments) -> dict:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def log_prob(record: Record) -> float:
    return float((record.action_logits - record.value()[:-1]).sum())


def tokens(record: Record) -> int:
    return record.length


def margins(records, score) -> list[float]:
    return [score(chosen) - score(rejected) for chosen, rejected in records]


def test_a_named_reading_has_the_figures_of_a_plain_computation(made, capsys):
    flags, records, _ = made
    found = answer(capsys, *flags)
    assert found["pairs"] == 5 and found["teacher_margin"] == "log-prob"
    expected = {
        # γ = 1 telescopes; the potential of the prompt is each record's own here
        "soft value, γ 1, sum: the paper": margins(records, lambda r: r.value()[-1] - r.value()[0]),
        "entropy, γ 0, mean": margins(records, lambda r: -r.entropies[:-1].mean()),
        "the teacher's own log-prob": margins(records, log_prob),
    }
    for name, m in expected.items():
        reading = found["readings"][name]
        assert reading["agreement"] == sum(x > 0 for x in m) / 5
        assert reading["deviation"] == pytest.approx(statistics.pstdev(map(float, m)), rel=1e-5)
        d, own = margins(records, tokens), margins(records, log_prob)
        assert reading["length_correlation"] == pytest.approx(np.corrcoef(m, d)[0, 1], abs=1e-5)
        assert reading["teacher_correlation"] == pytest.approx(np.corrcoef(m, own)[0, 1], abs=1e-5)
    cross_entropy = found["cross_entropy"]["teacher"]
    for index, side in enumerate(("chosen", "rejected")):
        of_side = [pair[index] for pair in records]
        assert cross_entropy[side] == pytest.approx(-sum(map(log_prob, of_side)) / sum(map(tokens, of_side)), rel=1e-5)


@pytest.mark.parametrize("role", ["teacher_reference", "reference"])
def test_with_a_reference_the_implicit_reward_is_compared(made, role, tmp_path, capsys):
    flags, records, teacher = made
    before = filled(tmp_path / "before", teacher.model_copy(update={"id": "1" * 32}), 1)
    found = answer(capsys, *flags, f"--{role.replace('_', '-')}", tmp_path / "before")
    A = [after - start for after, start in zip(margins(records, log_prob), margins(before, log_prob), strict=True)]
    reading = found["readings"]["implicit, γ 1, sum: ΣA"]
    assert reading["deviation"] == pytest.approx(statistics.pstdev(A), rel=1e-5)
    assert reading["teacher_correlation"] == pytest.approx(1)
    assert found["teacher_margin"] == "implicit reward" and set(found["cross_entropy"]) == {"teacher", role}


def test_a_shaping_flag_chooses_one_reading_and_alpha_is_taken(made, capsys):
    flags, _, _ = made
    found = answer(capsys, *flags, "--gamma", "0.5", "--alpha", "-3")
    assert list(found["readings"]) == ["gamma 0.5", "the teacher's own log-prob"]
    assert found["readings"]["gamma 0.5"]["alpha"] == -3


def test_the_tables_show_the_figures_and_the_warnings(made, capsys, monkeypatch):
    flags, _, _ = made
    monkeypatch.setenv("COLUMNS", "200")
    assert run(*flags) == 0
    shown = capsys.readouterr().out
    assert "5 pairs" in shown and "length alone: the" in shown and "Cross-entropy" in shown
    low, high = answer(capsys, *flags)["readings"]["entropy, γ 0, mean"]["interval"]
    assert f"[{low:.1%}, {high:.1%}]" in shown
    assert "hardly more than chance" in shown


@pytest.mark.parametrize("missing", ["none", "some"])
def test_what_is_not_in_the_store_is_one_line_with_the_command_that_fills_it(made, missing, tmp_path, capsys):
    flags, _, teacher = made
    place = tmp_path / "other"
    if missing == "some":
        filled(place, teacher, 0, PAIRS[:3])
    assert run(*flags[:-1], place) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and not printed.out
    assert f"tvkd prefetch --model MODEL --store {place} --tokenizer {flags[3]} --dataset {flags[1]}" in printed.err
    assert ("lacks 4 of 10 completions" in printed.err) == (missing == "some")


def test_another_temperature_is_asked_for_in_that_command(made, capsys):
    assert run(*made[0], "--temperature", "2") == 2
    assert "--temperatures 1.0,2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["--gamma", "2"], "--gamma"),
        (["--alpha", "inf"], "--alpha"),
        (["--potential", "implicit"], "--teacher-reference"),
        (["--teacher-id", "f" * 32], "f" * 32),
    ],
)
def test_a_mistake_is_one_line(made, extra, line, capsys):
    assert run(*made[0], *extra) == 2
    printed = capsys.readouterr()
    assert line in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_teacher_is_not_its_own_reference(made, capsys):
    assert run(*made[0], "--teacher-reference", made[0][-1]) == 2
    assert "are one model" in capsys.readouterr().err


def test_the_spread_of_margins_is_counted(made, capsys):
    flags, records, _ = made
    reading = answer(capsys, *flags)["readings"]["entropy, γ 0, mean"]
    m = margins(records, lambda r: -r.entropies[:-1].mean())
    edges, counts = reading["histogram"]["edges"], reading["histogram"]["counts"]
    assert any(edge == 0 for edge in edges)
    assert counts == [sum(low <= x < high for x in m) for low, high in pairwise(edges)]
    assert sum(counts) + reading["histogram"]["below"] + reading["histogram"]["above"] == 5
    of_group = {}
    for d, x in zip(margins(records, tokens), m, strict=True):
        of_group.setdefault(d, []).append(x > 0)
    groups = [(g["shortest"], g["longest"], g["pairs"], g["agreement"]) for g in reading["by_length"]]
    assert groups == [(d, d, len(right), sum(right) / len(right)) for d, right in sorted(of_group.items())]


def test_several_processes_give_the_figures_of_one(made, tmp_path, capsys, monkeypatch):
    flags, _, teacher = made
    alone = answer(capsys, *flags)
    monkeypatch.setattr(processes, "ROWS_A_PROCESS", 2)
    assert answer(capsys, *flags) == alone
    filled(tmp_path / "other", teacher, 0, PAIRS[:3])
    assert run(*flags[:-1], tmp_path / "other") == 2
    printed = capsys.readouterr()
    assert "lacks 4 of 10 completions" in printed.err and printed.err.count("\n") == 1
