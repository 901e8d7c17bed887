"""`tvkd show`: the picture says what the store holds, in colour and without."""

import json
import re
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from known_records import scored
from rich.color import Color

from tvkd.cli import main as tvkd
from tvkd_client.dataset import load_preferences
from tvkd_client.picture import luminance, shade
from tvkd_client.preference_tokens import load_tokenizer, tokenize_preferences
from tvkd_shared.key import completion_keys
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.wire import TeacherInfo


@pytest.fixture
def arguments(small_store):
    return ["--dataset", small_store.dataset, "--store", small_store.path, "--tokenizer", small_store.tokenizer]


def run(*arguments):
    return tvkd(["show", *(str(argument) for argument in arguments)])


def test_every_token_stands_over_its_shaping(arguments, capsys):
    assert run(*arguments) == 0
    words, numbers, *_ = (line.split() for line in capsys.readouterr().out.partition("chosen\n")[2].splitlines())
    assert words == ["w8", "w9", "<eos>"]
    assert numbers == ["+2.00", "-1.00", "+0.50"]


def test_sums_lengths_and_margin_are_shown(arguments, capsys):
    run(*arguments)
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].split() == ["chosen", "+1.500", "3", "+0.500"]
    assert table[1].split() == ["rejected", "-1.000", "2", "-0.500"]
    assert table[2].split() == ["margin", "+2.500", "+1", "+1.000"]


def test_a_prompt_under_another_name_is_taken_when_it_is_named(small_store, tmp_path, capsys):
    data = tmp_path / "asked.jsonl"
    data.write_text(small_store.dataset.read_text().replace('"prompt"', '"question"'))
    asked = ["--dataset", data, "--store", small_store.path, "--tokenizer", small_store.tokenizer]
    assert run(*asked) == 2
    assert "question looks like it: --prompt-column question" in capsys.readouterr().err
    assert run(*asked, "--prompt-column", "question") == 0
    assert capsys.readouterr().out.partition("chosen\n")[2].split()[:3] == ["w8", "w9", "<eos>"]


def test_the_terminal_reading_is_applied_after_the_end_of_sequence(arguments, capsys):
    run(*arguments, "--terminal", "zero", "--gamma", "0.5")
    numbers = capsys.readouterr().out.partition("chosen\n")[2].splitlines()[1].split()
    assert numbers == ["+0.50", "-2.00", "-2.00"]


def test_the_implicit_potential_shows_the_advantage(small_store, arguments, tmp_path, capsys):
    before = TeacherInfo.model_validate(StoreReader(small_store.path).teachers()["0" * 32] | {"id": "1" * 32})
    keys = completion_keys(before.id, [4, 20, 21, 5], [[8, 9, 2], [10, 2]])
    with closing(open_store(tmp_path / "before")) as store:
        store.add_teacher(before.id, before.model_dump(mode="json"))
        store.put(before.id, list(zip(keys, (scored([0.5, 0.5, 0.5, 0.0]), scored([0.0, 0.0, 0.0])), strict=True)))
    assert run(*arguments, "--potential", "implicit", "--teacher-reference", tmp_path / "before") == 0
    shown = capsys.readouterr().out
    # log π is −V where the action logits are 0, so A is V before the DPO less V after it.
    assert shown.partition("chosen\n")[2].splitlines()[1].split() == ["-0.50", "-2.50", "-1.50"]
    assert "potential implicit   γ 1" in shown


def test_a_folder_s_other_ends_of_sequence_are_ends(small_store, tmp_path, capsys):
    folder, data = tmp_path / "student", tmp_path / "chats.jsonl"
    tokenizer = load_tokenizer(str(small_store.tokenizer))
    tokenizer.eos_token = "w100"
    tokenizer.save_pretrained(folder)
    sides = {side: [{"role": "assistant", "content": word}] for side, word in (("chosen", "w8"), ("rejected", "w10"))}
    chat = {"prompt": [{"role": "user", "content": "w20"}], **sides}
    data.write_text(json.dumps(chat) + "\n")
    tokens = tokenize_preferences(load_preferences(str(data)), tokenizer)[0]
    assert tokens["chosen_ids"] == [8, 2, 7]
    with closing(StoreReader(small_store.path)) as reader:
        teacher = TeacherInfo.model_validate(reader.teachers()["0" * 32])
    keys = completion_keys(teacher.id, tokens["prompt_ids"], [tokens["chosen_ids"], tokens["rejected_ids"]])
    with closing(open_store(tmp_path / "store")) as store:
        store.add_teacher(teacher.id, teacher.model_dump(mode="json"))
        store.put(teacher.id, [(key, scored([1.0, 3.0, 2.0, 2.5])) for key in keys])

    def numbers() -> list[str]:
        run("--dataset", data, "--store", tmp_path / "store", "--tokenizer", folder, "--terminal", "zero")
        return capsys.readouterr().out.partition("chosen\n")[2].splitlines()[1].split()

    assert numbers() == ["+2.00", "-1.00", "+0.50"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [100, 2]}))
    assert numbers() == ["+2.00", "-3.00", "+0.00"]


@pytest.mark.parametrize("variable", ["TVKD_STORE", "TVKD_SERVER"])
def test_a_flag_beats_a_variable_that_names_another_source(small_store, arguments, variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    if variable == "TVKD_SERVER":
        assert run(*arguments) == 0
    else:
        server = ["--dataset", small_store.dataset, "--tokenizer", small_store.tokenizer, "--server", "nowhere"]
        assert run(*server) == 2
        assert "'nowhere' is not a URL" in capsys.readouterr().err


def test_two_variables_that_name_a_source_are_refused_and_one_is_taken(small_store, monkeypatch, capsys):
    monkeypatch.setenv("TVKD_STORE", str(small_store.path))
    assert run("--dataset", small_store.dataset, "--tokenizer", small_store.tokenizer) == 0
    monkeypatch.setenv("TVKD_SERVER", "http://127.0.0.1:1")
    assert run("--dataset", small_store.dataset, "--tokenizer", small_store.tokenizer) == 2
    assert "--server or --store" in capsys.readouterr().err


def test_files_hold_the_same_picture_and_ask_the_network_for_nothing(arguments, tmp_path, capsys):
    html, svg = tmp_path / "pair.html", tmp_path / "pair.svg"
    assert run(*arguments, "--html", html, "--svg", svg) == 0
    for file in (html, svg):
        text = file.read_text()
        assert all(number in text for number in ("+2.00", "-1.00", "+2.500"))
        assert not re.search(r"(src|href|url)\s*[=(]\s*['\"]?\s*http", text)


@pytest.mark.parametrize("share", np.linspace(-1, 1, 41))
def test_text_on_every_shade_has_the_contrast_that_wcag_asks_for(share):
    style = shade(share)
    background, foreground = (luminance(*color.get_truecolor()) for color in (style.bgcolor, style.color))
    lighter, darker = max(background, foreground), min(background, foreground)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_zero_is_the_lightest_shade_and_signs_have_their_own_colours():
    def rgb(share: float) -> tuple[int, int, int]:
        color = shade(share).bgcolor
        assert isinstance(color, Color)
        return tuple(color.get_truecolor())

    assert luminance(*rgb(0)) > max(luminance(*rgb(-0.2)), luminance(*rgb(0.2)))
    assert rgb(1)[2] > rgb(1)[0]  # blue above zero
    assert rgb(-1)[0] > rgb(-1)[2]  # red below


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--row", "7"], "--row 7"),
        (["--gamma", "2"], "--gamma"),
        (["--potential", "wrong"], "--potential"),
        (["--server", "http://127.0.0.1:1"], "--server or --store"),
        (["--teacher-id", "f" * 32], "f" * 32),
        (["--temperature", "2"], "temperatures 1.0, 2.0"),
        (["--potential", "implicit"], "--teacher-reference"),
        (["--teacher-reference", "values"], "--potential implicit"),
    ],
)
def test_a_mistake_is_one_line_and_names_what_was_wrong(arguments, extra, said, capsys):
    assert run(*arguments, *extra) in (1, 2)
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if not line.startswith("tvkd show: reading ")]
    assert len(told) == 1 and said in told[0] and not printed.out


def test_help_is_there():
    shown = subprocess.run(
        [sys.executable, "-m", "tvkd.cli", "show", "--help"], capture_output=True, text=True, check=True
    )
    assert "--svg" in shown.stdout
