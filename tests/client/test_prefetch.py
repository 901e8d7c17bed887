import json
import re
import signal
import subprocess
import sys
import time

import pytest
from preference_rows import conversational, implicit, plain, words

from running_server import start_server
from tvkd.cli import main as tvkd


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def own_server(tiny_teacher, tmp_path):
    """A server whose counters nobody else moves."""
    running = start_server(tiny_teacher, tmp_path / "values")
    yield running
    running.kill()


@pytest.fixture
def arguments(server, tiny_teacher, tmp_path):
    def of(rows: list[dict], *flags: str, url: str = server.url) -> list[str]:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [
            "prefetch",
            "--server",
            url,
            "--dataset",
            f"{tmp_path}/pairs.jsonl",
            "--tokenizer",
            str(tiny_teacher),
            *flags,
        ]

    return of


def computed(server) -> float:
    return server.metric("tvkd_computed_completions_total")


def test_a_second_prefetch_runs_no_teacher(server, arguments, capsys):
    rows = plain(20, seed=1000)
    before = computed(server)
    assert tvkd(arguments(rows, "--temperatures", "1.0,2.0")) == 0
    assert "40 sequences" in (first := capsys.readouterr().out) and "0 hits, 40 computed" in first
    assert "bytes a token" in first
    assert computed(server) - before == 40
    assert tvkd(arguments(rows, "--temperatures", "2.0")) == 0
    assert "40 hits, 0 computed" in capsys.readouterr().out
    assert computed(server) - before == 40


def test_the_first_pair_is_shown_before_anything_is_sent_unless_it_is_quiet(arguments, capsys):
    rows = [{"question": "w8 w9 ", "chosen": "w10", "rejected": "w11"}]
    assert tvkd(arguments(rows)) == 2
    assert "question looks like it: --prompt-column question" in capsys.readouterr().err
    assert tvkd(arguments(rows, "--prompt-column", "question")) == 0
    shown = capsys.readouterr().err
    assert "the first of 1 pairs of " in shown and "\n  prompt   'w8 w9'\n  chosen   'w10 <eos>'\n" in shown
    assert tvkd(arguments(rows, "--prompt-column", "question", "--quiet")) == 0
    assert "w10" not in capsys.readouterr().err


def test_what_was_prefetched_is_what_the_trainer_asks_for(server, arguments, tokenizer):
    from datasets import Dataset

    from tvkd_client.preference_tokens import tokenize_preferences
    from tvkd_client.source import StoreSource

    rows = implicit(conversational(5, seed=2000))
    assert tvkd(arguments(rows)) == 0
    tokens = tokenize_preferences(Dataset.from_list(rows), tokenizer)[:]
    for side in ("chosen_ids", "rejected_ids"):
        records = StoreSource(server.store_path).fetch(tokens["prompt_ids"], tokens[side])
        assert [record.length for record in records] == list(map(len, tokens[side]))


def test_a_prefetch_that_is_stopped_goes_on_where_it_was(own_server, arguments, capsys):
    rows = [
        row | {"chosen": words(i, 100), "rejected": words(-i - 1, 100)} for i, row in enumerate(plain(800, seed=9000))
    ]
    # A shell starts what runs in the background with SIGINT ignored, which these tests may inherit.
    program = ["env", "--default-signal=INT", sys.executable, "-m", "tvkd.cli"]
    command = [*program, *arguments(rows, "--in-flight", "1", url=own_server.url)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while computed(own_server) < 20:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "of 1,600 sequences; they are stored, run again to go on" in (said := process.stderr.read())
        assert "Traceback" not in said
    assert tvkd(arguments(rows, url=own_server.url)) == 0
    # The request that was under way is still computed and stored, perhaps while the second prefetch already runs.
    hits = int(re.search(r"([\d,]+) hits", capsys.readouterr().out)[1].replace(",", ""))
    assert 0 < hits < 1600
    assert computed(own_server) == 1600, "a completion was computed twice"


def test_rows_too_long_stop_it_before_anything_is_sent_unless_they_are_to_be_skipped(server, arguments, capsys):
    rows = [*plain(3, seed=3000), plain(1, seed=3100)[0] | {"rejected": words(1, 300)}]
    before = computed(server)
    assert tvkd(arguments(rows)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tvkd prefetch: 1 of 4 pairs are longer than the teacher's 256 tokens (row 3 has 306)")
    assert said.endswith("--skip-too-long")
    assert computed(server) == before
    assert tvkd(arguments(rows, "--skip-too-long")) == 0
    captured = capsys.readouterr()
    assert "1 of 4 pairs" in captured.err and "6 sequences" in captured.out


def test_an_added_token_is_refused_only_where_the_data_use_it(server, arguments, tokenizer, tmp_path, capsys):
    tokenizer.add_tokens(["w500"])
    tokenizer.save_pretrained(tmp_path / "grown")
    rows = plain(2, seed=4000)
    grown = ["--tokenizer", str(tmp_path / "grown")]
    assert tvkd(arguments(rows, *grown)) == 0
    capsys.readouterr()
    assert tvkd(arguments([rows[0] | {"chosen": "w500"}], *grown)) == 2
    assert "ids that the data use: 128 is 'w500' here and None there; other_vocabulary" in capsys.readouterr().err
    assert tvkd(arguments([rows[0] | {"chosen": "w500"}], *grown, "--other-vocabulary")) == 2
    assert "token id 128; the teacher's are 0 … 127" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--dataset", "missing.jsonl"], "no data set at missing.jsonl"),
        (["--tokenizer", "/missing"], "tokenizer /missing cannot be read"),
        (["--temperatures", "0.001"], "temperatures"),
        (["--temperatures", "hot"], "--temperatures"),
        (["--server", "localhost"], "is not a URL"),
        (["--in-flight", "0"], "--in-flight"),
    ],
)
def test_a_users_mistake_is_one_line_and_2(flags, line, arguments, capsys):
    assert tvkd(arguments(plain(1), *flags, "--quiet")) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("tvkd prefetch: ")]
    assert len(said) == 1 and line in said[0]
