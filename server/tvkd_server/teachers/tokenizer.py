"""The teacher's tokenizer, and digests that tell one tokenizer from another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvkd_server.teachers.checkpoint import first_line
from tvkd_shared.ending import Ending, declared_eos
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.text import TokenizedItem, tokenize
from tvkd_shared.vocabulary import template_digest, tokens_by_id, vocabulary_digest
from tvkd_shared.wire import TextItem

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Tokenizer:
    """The tokenizer saved with a checkpoint. Without one, the digests are None and only token ids are answered."""

    def __init__(self, directory: Path) -> None:
        """Raises InvalidRequest when the directory has tokenizer files that cannot be read."""
        self._tokenizer: Any = None
        self.digest: str | None = None
        self.chat_template_digest: str | None = None
        self._ending: Ending | None = None
        if not any((directory / name).exists() for name in _FILES):
            return
        from transformers import AutoTokenizer  # noqa: PLC0415 - it takes seconds, and only a teacher needs it

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise InvalidRequest(f"{directory} has a tokenizer that does not load: {first_line(error)}") from error
        self.digest = vocabulary_digest(self._tokenizer.get_vocab())
        self.chat_template_digest = template_digest(self._tokenizer.chat_template)
        self._ending = Ending(self._tokenizer, declared_eos(directory))

    def vocabulary(self) -> list[str | None]:
        """The token of each id; none at all without a tokenizer."""
        return tokens_by_id(self._tokenizer.get_vocab()) if self._tokenizer else []

    def ending_of(self, completion: Sequence[int]) -> int | None:
        """Its number of tokens up to and including its end-of-sequence token; None when it has none."""
        return self._ending.of(completion) if self._ending else None

    def words(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as text by itself."""
        return [str(self._tokenizer.decode([token])) for token in token_ids]

    def tokenize(self, item: TextItem, longest: int, max_tokens: int) -> TokenizedItem:
        """See `tvkd_shared.text.tokenize`. Raises InvalidRequest without a tokenizer too."""
        if self._tokenizer is None:
            raise InvalidRequest("the teacher was saved without a tokenizer; send token ids")
        return tokenize(self._tokenizer, item, longest=longest, max_tokens=max_tokens)
