"""`tvkd store`: what a user types and reads."""

import shutil
from contextlib import closing

import numpy as np
import pytest
from store_commands import PAIRS, everything, run

from tvkd.store.command import store as main
from tvkd_shared.record import Record, column_names
from tvkd_shared.store import open_store


def test_info_says_what_is_there_by_teacher(filled, capsys):
    code, said = run(capsys, "info", "--store", filled / "values")
    assert code == 0
    ((teacher, own),) = said["teachers"].items()
    assert (own["sequences"], own["temperatures"]) == (16, [1.0, 2.0])
    assert own["provenance"]["id"] == teacher and own["provenance"]["engine"] == "transformers"
    assert said["tokens"] == own["tokens"] == len(PAIRS) * (3 + 1 + 2 + 1)  # each with its end of sequence
    assert main(["info", "--store", str(filled / "values")]) == 0
    text = " ".join(capsys.readouterr().out.split())  # lines are as long as the terminal is wide
    assert "float32, exact" in text and teacher in text and "temperatures 1.0, 2.0" in text


def test_compact_verify_and_gc_change_no_value(filled, capsys, tmp_path):
    shutil.copytree(filled / "values", tmp_path / "values")
    filled = tmp_path
    with closing(open_store(filled / "values")) as store:
        for number in range(3):
            numbers = np.ones((4, len(column_names())), np.float32)
            numbers[-1, column_names().index("action_logit")] = np.nan
            store.put("t" * 32, [(bytes([number]) * 16, Record(column_names(), numbers))])
            store.seal()
        live = len(store.catalog.segments)
    before = everything(filled / "values")
    code, done = run(capsys, "compact", "--store", filled / "values")
    assert code == 0 and done["segments_before"] > done["segments_after"] == 1
    assert run(capsys, "gc", "--store", filled / "values", "--grace-hours", "0")[1]["files"] > 0
    assert run(capsys, "verify", "--store", filled / "values") == (
        0, {"segments": live - 2, "problems": [], "certificate": None},
    )  # fmt: skip
    assert everything(filled / "values") == before


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["melt"], "no command 'melt'; there are info, verify"),
        (["info"], "--store is needed"),
        (["info", "--store", "{tmp}/none"], "there is no store at"),
        (["compact", "--store", "{tmp}/none"], "there is no store at"),
        (["import", "--store", "{tmp}/new", "--source", "{tmp}/none"], "there is no store at"),
        (["import", "--store", "{tmp}/new", "--source", "{values}/../pairs.jsonl"], "neither a store nor an archive"),
        (["export", "--store", "{values}", "--output", "{tmp}"], "exists already"),
        (["export", "--store", "{values}", "--output", "{tmp}/x", "--teacher-id", "me"], "has no teacher me"),
        (["verify", "--store", "{values}", "--rescore", "3"], "give all four, or none"),
        (["verify", "--store", "ftp://host/x"], "ftp is none of s3, gs, az"),
    ],
)
def test_a_mistake_is_one_line(filled, capsys, tmp_path, arguments, line):
    names = {"tmp": tmp_path, "values": filled / "values"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "x").exists() and not (tmp_path / "none").exists()


def test_damage_is_told_by_name_and_by_exit_code(filled, capsys, tmp_path):
    shutil.copytree(filled / "values", tmp_path / "values")
    file = next((tmp_path / "values" / "segments").glob("*/values/c/0/0"))
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    assert main(["verify", "--store", str(tmp_path / "values")]) == 1
    assert f"segments/{file.parts[-5]}/values" in capsys.readouterr().out
    assert main(["export", "--store", str(tmp_path / "values"), "--output", str(tmp_path / "export")]) == 1
    assert "damaged blocks were left out" in capsys.readouterr().out
