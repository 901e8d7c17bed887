"""What every engine offers: one prompt and its completions in, values out."""

from collections.abc import Sequence
from typing import Protocol

from tvkd_shared.record import Record
from tvkd_shared.wire import TeacherInfo, TextItem, TokenItem


class Teacher(Protocol):
    info: TeacherInfo

    async def score(
        self,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperatures: Sequence[float],
    ) -> list[Record]:
        """Values of each completion after one prompt, in order.

        `Record.values` holds temperature 1.0 and every asked one. Calls made at the same time share passes; one that
        is cancelled or fails leaves its neighbours alone.
        Raises InvalidRequest (see `limits.check`) or TeacherUnavailable.
        """
        ...

    def tokenize(self, item: TextItem, max_tokens: int) -> TokenItem:
        """Token ids by the teacher's own tokenizer and chat template.

        The prompt is tokenised with each completion. Raises InvalidRequest if there is no tokenizer, SequenceTooLong
        for a prompt that the teacher cannot hold, PayloadTooLarge when all prompts together exceed `max_tokens`.
        """
        ...

    async def died(self) -> None:
        """Return once the engine is dead for good; never while it lives. Calls after it raise TeacherUnavailable."""
        ...

    async def close(self) -> None:
        """Finish what is in the engine, refuse what waits. Calls after this raise TeacherUnavailable."""
        ...
