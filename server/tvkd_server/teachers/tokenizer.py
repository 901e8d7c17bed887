"""The teacher's tokenizer: text and chats to token ids, and digests that tell one tokenizer from another."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tvkd_server.teachers.checkpoint import first_line
from tvkd_shared.errors import InvalidRequest, PayloadTooLarge, SequenceTooLong
from tvkd_shared.vocabulary import vocabulary_digest
from tvkd_shared.wire import TextItem, TokenItem

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Tokenizer:
    """The tokenizer saved with a checkpoint. Without one, the digests are None and only token ids are answered."""

    def __init__(self, directory: Path) -> None:
        """Raises InvalidRequest when the directory has tokenizer files that cannot be read."""
        self._tokenizer: Any = None
        self.digest: str | None = None
        self.chat_template_digest: str | None = None
        if not any((directory / name).exists() for name in _FILES):
            return
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise InvalidRequest(f"{directory} has a tokenizer that does not load: {first_line(error)}") from error
        self.digest = vocabulary_digest(self._tokenizer.get_vocab())
        if template := self._tokenizer.chat_template:
            text = json.dumps(template, sort_keys=True)
            self.chat_template_digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def tokenize(self, item: TextItem, longest: int, max_tokens: int) -> TokenItem:
        """Token ids of a prompt and its completions, divided where the tokenised prompt ends.

        Text is taken as it stands, with the special tokens that the tokenizer puts in front and no end-of-sequence
        token behind. Messages go through the chat template, with each completion as the assistant's answer to them.
        Raises SequenceTooLong for a prompt that leaves no room within `longest`, PayloadTooLarge when the prompt, once
        for each completion, exceeds `max_tokens`, and InvalidRequest without a tokenizer or chat template, when a
        completion adds no token, or when a token spans the border between prompt and completion.
        """
        if self._tokenizer is None:
            raise InvalidRequest("the teacher was saved without a tokenizer; send token ids")
        prompt_ids = self._ids(item.prompt, None)
        # Before the completions: each is tokenised with its prompt, and a long prompt takes its time each time.
        if len(prompt_ids) >= longest:
            raise SequenceTooLong(
                f"the prompt is {len(prompt_ids)} tokens; the teacher's longest sequence is {longest}"
            )
        if len(prompt_ids) * len(item.completions) > max_tokens:
            raise PayloadTooLarge(
                f"a prompt of {len(prompt_ids):,} tokens and {len(item.completions):,} completions as text exceed "
                f"the {max_tokens:,} tokens that a request may still hold: split it, or send token ids"
            )
        completions = []
        for index, completion in enumerate(item.completions):
            ids = self._ids(item.prompt, completion)
            if ids[: len(prompt_ids)] != prompt_ids or not prompt_ids:
                raise InvalidRequest(
                    f"completions[{index}]: a token spans the border between prompt and completion; end the prompt "
                    "where a token ends, or send token ids"
                )
            if len(ids) == len(prompt_ids):
                raise InvalidRequest(f"completions[{index}] is no token long; it needs at least one")
            completions.append(ids[len(prompt_ids) :])
        return TokenItem(prompt_token_ids=prompt_ids, completions=completions)

    def _ids(self, prompt: str | list[Any], completion: str | None) -> list[int]:
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt + (completion or ""))["input_ids"])
        if not self._tokenizer.chat_template:
            raise InvalidRequest("the teacher's tokenizer has no chat template; send the prompt as text or token ids")
        chat = [message.model_dump() for message in prompt]
        if completion is not None:
            chat.append({"role": "assistant", "content": completion})
        try:
            return list(
                self._tokenizer.apply_chat_template(chat, add_generation_prompt=completion is None, return_dict=True)[
                    "input_ids"
                ]
            )
        except Exception as error:
            raise InvalidRequest(f"the teacher's chat template refuses these messages: {first_line(error)}") from error
