"""Pairs in the teacher's tokens: the same from its server and from its folder, in spans that partition both sides."""

from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, reject
from hypothesis import strategies as st

from running_server import start_server
from text_tokenizers import CHAT_TEMPLATE, EOS, byte_level, merged, texts, token_bytes, words
from tvkd_client.completions import SPAN_COLUMNS, TEACHER_COLUMNS, Completions, spans_of
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.source import ServerSource, StoreSource, teacher_of
from tvkd_client.teacher_tokens import (
    TeacherTokenizer,
    add_teacher_tokens,
    teacher_tokenizer,
    text_item,
    with_whole_spans,
)
from tvkd_client.token_rows import TOKEN_COLUMNS
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.text import tokenize
from tvkd_shared.vocabulary import vocabulary_digest


def chat(prompt, chosen, rejected):
    sides = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
    return {name: [{"role": role, "content": text}] for name, (role, text) in sides.items()}


SIDES = ("chosen", "rejected")
TOKENIZERS = {
    "bytes": byte_level(), "many merges": byte_level(900), "trimmed": byte_level(trim=True), "merged": merged(),
    "normalised": merged(normalized=True), "words": words(),
}  # fmt: skip
BY_BYTES = ("bytes", "many merges", "merged")
CHATS = Dataset.from_list([chat("the 😀?", "naïve 👍🏽 日本", " the\n"), chat("e\u0301", "é the teacher", "\n\nx 🇫🇷")])
TEXTS = Dataset.from_list([{"prompt": "the\n", "chosen": "teacher 🇯🇫", "rejected": "naïve<eos>"}])


def local(tokenizer, vocabulary=None):
    return TeacherTokenizer("here", lambda items: [tokenize(tokenizer, item) for item in items], vocabulary, None)


def with_teacher_tokens(rows, student, teacher, vocabulary=None):
    return add_teacher_tokens(tokenize_preferences(rows, student), "train", student, local(teacher, vocabulary))


@pytest.fixture(scope="module")
def server(byte_teacher, tmp_path_factory):
    running = start_server(byte_teacher, tmp_path_factory.mktemp("bytes") / "values")
    yield running
    running.kill()


@pytest.mark.parametrize("rows", [CHATS, TEXTS], ids=["chats", "texts"])
def test_the_server_and_the_teachers_folder_give_the_same_tokens_as_trl_makes_with_them(rows, server, byte_teacher):
    source = ServerSource(server.url)
    rows_of_student = tokenize_preferences(rows, merged())
    divide = [teacher_tokenizer(setting, source) for setting in ("server", str(byte_teacher))]
    made = [add_teacher_tokens(rows_of_student, "", merged(), each).to_list() for each in divide]
    assert made[0] == made[1]
    by_trl = tokenize_preferences(rows, byte_level())
    for row, teachers in zip(made[0], by_trl, strict=True):
        assert [row[name] for name in TEACHER_COLUMNS] == [
            teachers[name.removeprefix("teacher_")] for name in TEACHER_COLUMNS
        ]


@pytest.mark.parametrize("rows", [CHATS, TEXTS], ids=["chats", "texts"])
@pytest.mark.parametrize("teacher", [byte_level(), words()], ids=["bytes", "words"])
def test_spans_partition_the_tokens_of_both(rows, teacher):
    for row in with_teacher_tokens(rows, merged(), teacher):
        for side, column in zip(("chosen", "rejected"), SPAN_COLUMNS, strict=True):
            spans = spans_of(row[column])
            assert spans.student_counts[-1] == len(row[f"{side}_ids"])
            assert spans.teacher_counts[-1] == len(row[f"teacher_{side}_ids"])
            assert (np.diff(spans.student_counts, prepend=0) > 0).all()
            # End of turn, or of sequence, is a span of its own.
            assert spans.student_counts[-2] < len(row[f"{side}_ids"])


def columns_of(student, teacher, prompt, sides, *, plain) -> dict[str, list]:
    """A row of text, as a chat or plain, in the tokens of both, and their spans. Rejects what cannot be divided."""
    if plain:
        pair = {"prompt": prompt} | {name: text + EOS for name, text in zip(SIDES, sides, strict=True)}
    else:
        pair = chat(prompt, *sides)
    try:
        ours = tokenize(student, text_item(pair, EOS, ""))
        ids = dict(zip(TOKEN_COLUMNS, [ours.prompt_token_ids, *ours.completions], strict=True))
        rows = Dataset.from_list([pair | ids]).to_iterable_dataset()
        (row,) = add_teacher_tokens(rows, "", student, local(teacher))
    except InvalidRequest as refusal:
        assert "spans the border" in str(refusal) or "no token long" in str(refusal)
        reject()
    return {name: [row[name]] for name in (*TOKEN_COLUMNS, *TEACHER_COLUMNS, *SPAN_COLUMNS)}


def pieces(tokenizer, ids, counts) -> list[bytes]:
    """The bytes that the tokens of each span stand for."""
    return [
        b"".join(token_bytes(tokenizer, token) for token in ids[begin:end]) for begin, end in pairwise([0, *counts])
    ]


two_texts = st.tuples(texts, texts)


@given(texts, two_texts, st.sampled_from([*TOKENIZERS]), st.sampled_from([*TOKENIZERS]), st.booleans(), st.data())
def test_sums_over_spans_are_the_teachers_own_and_nothing_is_counted_twice(prompt, sides, ours, theirs, plain, data):
    columns = columns_of(TOKENIZERS[ours], TOKENIZERS[theirs], prompt + "\n", sides, plain=plain)
    whole = Completions(columns)
    tokens = {role: whole.of(role)[1] for role in ("reference", "teacher")}
    draw = data.draw(st.randoms())
    # Whole numbers, so that no order of adding rounds.
    numbers = {
        role: [np.array([draw.randrange(-999, 999) for _ in ids], float) for ids in of_role]
        for role, of_role in tokens.items()
    }
    for role, of_tokens in numbers.items():
        assert [sums.sum() for sums in whole.span_sums(role, of_tokens)] == [of_all.sum() for of_all in of_tokens]
    assert whole.kept_of("teacher") == list(map(len, tokens["teacher"]))
    # Truncation leaves the teacher's tokens of whole spans.
    least = [int(spans.student_counts[0]) for spans in whole.spans]
    kept = [draw.randint(first, len(ids)) for first, ids in zip(least, tokens["reference"], strict=True)]
    cut, A = Completions(columns, kept), numbers["teacher"]
    assert [sums.sum() for sums in cut.span_sums("teacher", A)] == [
        of_all[:count].sum() for of_all, count in zip(A, cut.kept_of("teacher"), strict=True)
    ]


@given(two_texts, st.sampled_from(BY_BYTES), st.sampled_from(BY_BYTES), st.booleans())
def test_the_tokens_of_a_span_are_one_piece_of_the_text_on_both_sides(sides, ours, theirs, plain):
    # "▁" stands for a blank in one of them, which also puts one behind each special token.
    sides = tuple(text.replace("▁", "_").replace("<|end|>", "").replace(EOS, "") or "x" for text in sides)
    student, teacher = TOKENIZERS[ours], TOKENIZERS[theirs]
    completions = Completions(columns_of(student, teacher, "the\n", sides, plain=plain))
    tokens = completions.of("reference")[1], completions.of("teacher")[1]
    for text, of_student, of_teacher, spans in zip(sides, *tokens, completions.spans, strict=True):
        of_both = [
            pieces(student, of_student, spans.student_counts),
            pieces(teacher, of_teacher, spans.teacher_counts),
        ]
        for kind, of_side in zip((ours, theirs), of_both, strict=True):
            of_side.pop()  # the end of the turn
            if kind == "merged" and not plain:
                of_side[0] = of_side[0].removeprefix(b" ")
        assert of_both[0] == of_both[1] and b"".join(of_both[0]) == text.encode()


def test_several_processes_make_the_same_tokens_and_name_the_same_row(server, byte_teacher):
    rows = tokenize_preferences(CHATS, merged())
    for setting in ("server", str(byte_teacher)):
        teacher = teacher_tokenizer(setting, ServerSource(server.url))
        one, two = (add_teacher_tokens(rows, "train", merged(), teacher, processes=n).to_list() for n in (None, 2))
        assert one == two
        wrong = Dataset.from_list([rows[0], rows[1] | {"chosen_ids": [1]}])
        with pytest.raises(InvalidRequest, match=r"^data set train, row 1: "):
            add_teacher_tokens(wrong, "train", merged(), teacher, processes=2)


def test_with_one_vocabulary_each_token_is_a_span_also_where_a_character_is_several():
    (row,) = with_teacher_tokens(TEXTS, byte_level(), byte_level(), vocabulary_digest(byte_level().get_vocab()))
    assert row["chosen_spans"] == [list(range(1, len(row["chosen_ids"]) + 1))] * 2
    (row,) = with_teacher_tokens(TEXTS, byte_level(), byte_level())
    assert len(row["chosen_spans"][0]) < len(row["chosen_ids"])  # what is not said to be one, is compared by text


def test_what_text_items_do_not_carry_is_refused_with_its_row():
    rows = tokenize_preferences(CHATS, merged()).to_list()
    turn = {"role": "assistant", "content": "x"}
    for change, says in [
        ({"tools": "[{}]"}, "takes no tools"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "no chat_template_kwargs"),
        ({"chosen": [turn, turn]}, "a completion is messages of assistant, assistant"),
        ({"chosen": [turn | {"role": "user"}]}, "a completion is messages of user"),
        ({"prompt": [turn | {"tool_calls": [{"x": 1}]}]}, "a message has role, content, tool_calls"),
        ({"prompt": [turn | {"content": [{"type": "text", "text": "x"}]}]}, "content, which is text"),
        ({"prompt": [turn | {"content": None}]}, "a message has role; with"),
        ({"chosen_ids": [1]}, "divides prompt and completion otherwise than TRL has"),
        ({"prompt": [turn]}, "divides prompt and completion otherwise than TRL has"),
    ]:
        changed = Dataset.from_list([rows[0] | change])
        with pytest.raises(InvalidRequest, match=f"^data set train, row 0: .*{says}"):
            add_teacher_tokens(changed, "train", merged(), local(byte_level()))


def test_a_template_that_rewrites_answers_is_refused_on_either_side():
    upper = CHAT_TEMPLATE.replace("message['content'] }}", "message['content'].upper() }}")
    for student, teacher, who in ((byte_level(template=upper), merged(), "student"),
                                  (merged(), byte_level(template=upper), "teacher")):  # fmt: skip
        with pytest.raises(InvalidRequest, match=f"row 0: the {who}'s tokenizer or chat template does not tell"):
            with_teacher_tokens(CHATS, student, teacher)


def test_a_wrong_teacher_tokenizer_is_told_in_one_line(server, byte_teacher, tmp_path):
    source = ServerSource(server.url)
    teacher = source.client.teacher()
    merged().save_pretrained(tmp_path / "merged")
    with pytest.raises(InvalidRequest, match="has another vocabulary than model byte-llama; give the folder"):
        teacher_tokenizer(str(tmp_path / "merged"), source).check(teacher)
    byte_level(template=CHAT_TEMPLATE + " ").save_pretrained(tmp_path / "template")
    other_template = teacher_tokenizer(str(tmp_path / "template"), source)
    with pytest.raises(InvalidRequest, match="has another chat template than model byte-llama"):
        other_template.check(teacher)
    other_template.check(teacher, template=False)  # token ids of a text are asked for, and no template
    with pytest.raises(InvalidRequest, match="cannot be read"):
        teacher_tokenizer(str(tmp_path), source)
    source.fill([[5, 6]], [[7]])
    store = StoreSource(server.store_path)
    with pytest.raises(InvalidRequest, match="do not come from one: give the folder of the teacher's tokenizer"):
        teacher_tokenizer("server", store)
    teacher_tokenizer(str(byte_teacher), store).check(teacher_of(store))


def test_pairs_of_which_no_whole_span_is_left_are_dropped_and_counted():
    rows = with_teacher_tokens(CHATS, merged(), byte_level())
    first = [max(row[column][0][0] for column in SPAN_COLUMNS) + len(row["prompt_ids"]) for row in rows]
    assert first[0] != first[1]
    told = []
    longest = max(first) - 1
    (left,) = with_whole_spans(rows, "train", longest, told.append)
    assert left["prompt_ids"] == rows[first.index(min(first))]["prompt_ids"]
    assert len(told) == 1 and told[0].startswith(f"max_length {longest} ") and "1 of 2 pairs of train" in told[0]
    assert len(list(with_whole_spans(rows.to_iterable_dataset(), "train", longest, told.append))) == 1
    with pytest.raises(InvalidRequest, match=r"max_length 1 .* in any of 2 pairs of train"):
        with_whole_spans(rows, "train", 1, told.append)
    assert len(with_whole_spans(rows, "train", max(first), told.append)) == 2 and len(told) == 1
