"""Text is tokenised by the teacher's own tokenizer and chat template, and divided only where a token ends."""

import copy

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from small_models import save
from text_tokenizers import CHAT_TEMPLATE, EOS, byte_level
from tvkd_server.teachers.tokenizer import Tokenizer
from tvkd_shared.errors import InvalidRequest, PayloadTooLarge, SequenceTooLong
from tvkd_shared.text import tokenize
from tvkd_shared.wire import Message, TextItem

CHAT = [Message(role="user", content="w9 w10")]


@pytest.fixture
def words(tiny_teacher):
    return AutoTokenizer.from_pretrained(tiny_teacher)


def test_text_is_taken_as_it_stands(tiny_teacher, words):
    item = TextItem(prompt="w9 w10", completions=[" w11", " w12 w13"])
    tokens = Tokenizer(tiny_teacher).tokenize(item, 256, 1000)
    assert words.convert_ids_to_tokens(tokens.prompt_token_ids) == ["w9", "w10"]
    assert [words.convert_ids_to_tokens(ids) for ids in tokens.completions] == [["w11"], ["w12", "w13"]]


def test_messages_go_through_the_chat_template_with_the_completion_as_the_answer(tiny_teacher, words):
    tokens = Tokenizer(tiny_teacher).tokenize(TextItem(prompt=CHAT, completions=["w11"]), 256, 1000)
    assert words.convert_ids_to_tokens(tokens.prompt_token_ids) == ["<user>", "w9", "w10", "<eos>", "\n", "<assistant>"]
    assert words.convert_ids_to_tokens(tokens.completions[0]) == ["w11", "<eos>", "\n"]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (TextItem(prompt="w9", completions=[" w10", "0"]), r"completions\[1\]: a token spans the border"),
        (TextItem(prompt="w9", completions=[" "]), r"completions\[0\] is no token long"),
    ],
)
def test_a_completion_that_cannot_be_divided_from_its_prompt_is_refused(item, says, tiny_teacher):
    with pytest.raises(InvalidRequest, match=says):
        Tokenizer(tiny_teacher).tokenize(item, 256, 1000)


def test_a_template_that_opens_a_thought_before_the_answer_is_named():
    opens_a_thought = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
    tokenizer = byte_level(template=opens_a_thought)
    with pytest.raises(InvalidRequest, match=r"ends the prompt with '<think>\\n', which it does not write"):
        tokenize(tokenizer, TextItem(prompt=CHAT, completions=["w11"]))


def test_a_tokenizer_that_ends_the_prompt_is_named():
    tokenizer = copy.deepcopy(byte_level())
    eos = (EOS, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[eos])
    with pytest.raises(InvalidRequest, match=r"puts <eos> behind the prompt.*add_eos_token"):
        tokenize(tokenizer, TextItem(prompt="w9", completions=[" w10"]))


def test_messages_are_refused_without_a_chat_template(tiny_teacher, words, tmp_path):
    words.chat_template = None
    words.save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(tmp_path).tokenize(TextItem(prompt=CHAT, completions=["w11"]), 256, 1000)


def test_text_is_refused_without_a_tokenizer(tmp_path):
    tokenizer = Tokenizer(save("llama", tmp_path))
    assert tokenizer.digest is None and tokenizer.chat_template_digest is None
    with pytest.raises(InvalidRequest, match="without a tokenizer; send token ids"):
        tokenizer.tokenize(TextItem(prompt="w9", completions=[" w10"]), 256, 1000)


def test_the_digests_tell_tokenizers_and_templates_apart(tiny_teacher, words, tmp_path):
    before = Tokenizer(tiny_teacher)
    words.chat_template += " "
    words.save_pretrained(tmp_path / "template")
    words.add_tokens(["w128"])
    words.save_pretrained(tmp_path / "token")
    other_template, other_token = Tokenizer(tmp_path / "template"), Tokenizer(tmp_path / "token")
    assert before.digest == other_template.digest != other_token.digest
    assert before.chat_template_digest != other_template.chat_template_digest == other_token.chat_template_digest


def test_a_long_prompt_is_refused_before_its_completions_are_tokenised(tiny_teacher):
    tokenizer = Tokenizer(tiny_teacher)
    with pytest.raises(SequenceTooLong, match="300 tokens"):
        tokenizer.tokenize(TextItem(prompt="w9 " * 300, completions=["w10"] * 10_000), 256, 10**9)
    with pytest.raises(PayloadTooLarge, match="10,000 completions"):
        tokenizer.tokenize(TextItem(prompt="w9 " * 100, completions=["w10"] * 10_000), 256, 1000)
