"""Each token's end in its completion's text is sound: at a place where the token really ends, and none is lost."""

from itertools import accumulate

import pytest
from hypothesis import given

from text_tokenizers import CHAT_TEMPLATE, EOS, byte_level, merged, texts, token_bytes, words
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.text import tokenize
from tvkd_shared.wire import Message, TextItem

CHAT = [Message(role="user", content="naïve 😀?")]
TOKENIZERS = {
    "bytes": byte_level, "many merges": lambda: byte_level(900), "trimmed": lambda: byte_level(trim=True),
    "merged": merged, "normalised": lambda: merged(normalized=True), "words": words,
}  # fmt: skip


def ends_of(tokenizer, completion, prompt=CHAT, **item):
    """(token, end in the completion's text) of each token."""
    tokens = tokenize(tokenizer, TextItem(prompt=prompt, completions=[completion], **item))
    names = tokenizer.convert_ids_to_tokens(tokens.completions[0])
    return tokens.ends[0] and list(zip(names, tokens.ends[0], strict=True))


@pytest.mark.parametrize("kind", ["bytes", "many merges", "trimmed", "merged"])
@given(text=texts)
def test_a_token_ends_where_its_bytes_end_or_inside_a_character_where_the_one_before_it_does(kind, text):
    tokenizer = TOKENIZERS[kind]()
    text = text if kind != "merged" else text.replace("▁", "_").replace("<|end|>", "").replace(EOS, "") or "x"
    tokens = tokenize(tokenizer, TextItem(prompt=CHAT, completions=[text]))
    sizes = list(accumulate(len(token_bytes(tokenizer, token)) for token in tokens.completions[0]))
    if kind == "merged":  # "▁" in front of the first token is the tokenizer's own
        sizes = [size - 1 for size in sizes]
    characters = {len(text[:count].encode()): count for count in range(len(text) + 1)}
    assert tokens.ends[0] == [*accumulate((characters.get(min(s, len(text.encode())), 0) for s in sizes), max)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=texts, prompt=texts)
def test_tokens_partition_their_completion_and_their_ids_are_the_tokenizers_own(kind, text, prompt):
    tokenizer = TOKENIZERS[kind]()
    chat = f"<|user|>{CHAT[0].content}<|end|>\n<|assistant|>{text}<|end|>\n"
    for item, whole in (
        (TextItem(prompt=CHAT, completions=[text]), tokenizer(chat, add_special_tokens=False)),
        (TextItem(prompt=prompt, completions=[text]), tokenizer(prompt + text)),
    ):
        try:
            tokens = tokenize(tokenizer, item)
        except InvalidRequest as refusal:
            assert "spans the border" in str(refusal) or "no token long" in str(refusal)
            continue
        (ids,), (ends,) = tokens.completions, tokens.ends
        assert tokens.prompt_token_ids + ids == whole["input_ids"]
        assert len(ends) == len(ids) and ends == sorted(ends) and ends[0] >= 0 and ends[-1] == len(text)


def test_characters_of_several_tokens_belong_to_the_last_of_them():
    assert ends_of(byte_level(), "a🇫🇫日") == [
        ("a", 1), ("ðŁ", 1), ("ĩ«ðŁ", 1), ("ĩ", 1), ("«", 3), ("æĹ", 3), ("¥", 4), ("<|end|>", 4), ("Ċ", 4),
    ]  # fmt: skip


def test_a_token_that_ends_inside_a_character_ends_no_other_character_either():
    """A blank and the first bytes of a character are one token: it counts with the token that ends the character."""
    assert ends_of(byte_level(900), "x 🇯")[:4] == [("x", 1), ("ĠðŁ", 1), ("ĩ", 1), ("¯", 3)]


def test_accents_that_a_tokenizer_drops_belong_to_their_letter_and_blanks_to_the_word_behind():
    assert ends_of(words(), "Te\u0301 the \u200b日") == [("te", 3), ("the", 7), ("日", 10), ("<|end|>", 10)]


def test_dropped_blanks_at_the_end_belong_to_the_last_word():
    assert ends_of(words(), "the 日  ") == [("the", 3), ("日", 7), ("<|end|>", 7)]


THINKING = CHAT_TEMPLATE.replace(
    "|>{{ message['content'] }}",
    "|>{% if message['role'] == 'assistant' %}<s>\n{% endif %}{{ message['content'] | trim }}",
)


def test_a_template_may_strip_the_answer_and_write_before_it():
    tokenizer = byte_level(template=THINKING)
    assert ends_of(tokenizer, "  \nx y\n ") == [
        ("<s>", 0), ("Ċ", 0), ("x", 4), ("Ġ", 5), ("y", 8), ("<|end|>", 8), ("Ċ", 8),
    ]  # fmt: skip
    assert ends_of(tokenizer, " \n")[0] == ("<s>", 2)  # nothing of it is left
    no_blank = THINKING.replace("<s>\n", "<s>")
    assert ends_of(words(template=no_blank), "\u200bthe")[:2] == [("<s>", 0), ("the", 4)]


@pytest.mark.parametrize(
    "rewriting", [" | upper", ".replace('x', 'X')", ".replace(' x', '')", "[:2]", ".split('x')[-1]"]
)
def test_a_template_that_rewrites_the_answer_gives_no_ends(rewriting):
    template = CHAT_TEMPLATE.replace("message['content'] }}", f"message['content']{rewriting} }}}}")
    assert ends_of(byte_level(template=template), "a x b") is None


def test_append_eos_puts_the_end_of_sequence_token_behind_the_text():
    assert ends_of(byte_level(), "x", prompt="\n", append_eos=True) == [("x", 1), (EOS, 1)]
    assert ends_of(byte_level(), "x", prompt="\n") == [("x", 1)]
    with pytest.raises(ValueError, match="append_eos is for a prompt of text"):
        TextItem(prompt=CHAT, completions=["x"], append_eos=True)
