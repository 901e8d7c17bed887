"""Texts that are hard to divide, and tokenizers made here that divide them in different ways."""

import functools
import json
import re
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
EOS = "<eos>"
CORPUS = [
    "the teacher scores the text and the student reads it. there are spaces  and\n\nnew lines\n",
    "naïve café, e\u0301te\u0301, Ünïcödé; ß ﬁne", "日本語のテキスト 日本", "😀😁 👩‍👩‍👧 👍🏽 🇫🇷 😀 the 😁",
] * 4  # fmt: skip

PIECES = ["the ", " teacher", "x", " ", "  ", "\n", "\n\n", "\t", "é", "e\u0301", "\u0301", "ﬁ", "日本", "テ", "😀",
          " 😁", "👩‍👩‍👧", "👍🏽", "🇫🇷", "\u200d", "\ufeff", "<|end|>", "<eos>", "▁", "\x00", "ẞ"]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), min_size=1, max_size=12).map("".join)


def _fast(tokenizer: Tokenizer, template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token=EOS, pad_token="<unk>",
        additional_special_tokens=SPECIAL[3:], chat_template=template,
    )  # fmt: skip


@functools.cache
def byte_level(size: int = 400, *, trim: bool = False, template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """GPT-2's kind: BPE over bytes, where a character may be several tokens, and one token parts of two characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, template)


@functools.cache
def merged(*, normalized: bool = False) -> PreTrainedTokenizerFast:
    """Llama 2's kind: BPE over characters with "▁" for a space and in front, and bytes for unknown characters.

    `normalized` adds NFKC, which composes and replaces characters.
    """
    blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    normalizer = normalizers.Sequence([*([normalizers.NFKC()] if normalized else []), *blanks])
    training = Tokenizer(models.BPE())
    training.normalizer = normalizer
    training.pre_tokenizer = pre_tokenizers.Split(Regex("▁|\n"), "merged_with_next")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*SPECIAL, *fallback], limit_alphabet=60, show_progress=False
    )
    training.train_from_iterator(CORPUS, trainer)
    trained = json.loads(training.to_str())["model"]
    merges = list(map(tuple, trained["merges"]))
    bpe = models.BPE(trained["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _fast(tokenizer)


@functools.cache
def words(template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer that drops blanks: pieces of words as in BERT, in lower case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, template)


def token_bytes(tokenizer: PreTrainedTokenizerFast, token_id: int) -> bytes:
    """The bytes of text that a token of `byte_level` or `merged` stands for."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes.fromhex(token[3:5])
    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return bytes(map(_byte_of_character().__getitem__, token))
    return token.replace("▁", " ").encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: a printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def save(tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    tokenizer.save_pretrained(directory)
    return directory
