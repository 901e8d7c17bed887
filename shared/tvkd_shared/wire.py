"""What travels over HTTP: `POST /v1/potentials` and the two descriptions, as pydantic models.

Numbers in an answer are the exact float32 values that the store holds, written so that reading them as float32 gives
the same bits.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from tvkd_shared.key import KEY_BYTES, VALUE_DEFINITION
from tvkd_shared.record import Record
from tvkd_shared.store.certificate import Certificate

MAX_TEMPERATURES = 8

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
# Lists fail at their first mistake: gathering all of a large body's mistakes takes minutes and gigabytes.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
TeacherId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Temperature = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class _Closed(BaseModel):
    """An unknown field is a mistake and is said, not ignored."""

    model_config = ConfigDict(extra="forbid")


class Message(_Closed):
    role: str
    content: str


class TokenItem(_Closed):
    """One prompt and its completions, as token ids of the teacher's vocabulary."""

    prompt_token_ids: TokenIds
    completions: Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]


class TextItem(_Closed):
    """One prompt and its completions as text, or a chat as messages, tokenised with the teacher's own template."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    completions: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]


def _item_kind(item: Any) -> str:
    return (
        "tokens" if isinstance(item, TokenItem) or (isinstance(item, dict) and "prompt_token_ids" in item) else "text"
    )


Item = Annotated[Annotated[TokenItem, Tag("tokens")] | Annotated[TextItem, Tag("text")], Discriminator(_item_kind)]


class PotentialsRequest(_Closed):
    temperatures: Annotated[list[Temperature], Field(min_length=1, max_length=MAX_TEMPERATURES)] = [1.0]
    entropy: bool = Field(False, description="send the entropy of each state too")
    teacher_id: TeacherId | None = Field(None, description="409 if another teacher answers")
    cache: Literal["use", "only", "skip"] = Field(
        "use",
        description="use: look up, compute what is missing, keep it. only: a miss is an error, "
        "the teacher is not run. skip: compute anew, neither read nor keep.",
    )
    return_: Literal["values", "digests"] = Field(
        "values", alias="return", description="digests: fill the store, send no values back"
    )
    items: Annotated[list[Item], Field(min_length=1, fail_fast=True)]

    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)

    @model_validator(mode="after")
    def _temperatures_differ(self) -> "PotentialsRequest":
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures {self.temperatures} repeat one another")
        if self.return_ == "digests" and self.cache == "skip":
            raise ValueError("return: digests with cache: skip would compute values and drop them")
        return self


class CompletionAnswer(BaseModel):
    key: Annotated[str, Field(min_length=2 * KEY_BYTES, max_length=2 * KEY_BYTES)]
    cached: bool
    length: Annotated[int, Field(ge=1)]
    values: list[list[float]] | None = Field(None, description="V(s_0) … V(s_T) per temperature, as asked")
    action_logits: list[float] | None = Field(None, description="q_0 … q_{T-1}")
    entropies: list[float] | None = Field(None, description="H(s_0) … H(s_T), when asked for")
    tokens: list[int] | None = Field(None, description="the completion's token ids, for text items only")

    def scored(self, temperatures: list[float]) -> Record:
        """The answer as a record. Entropies that were not asked for are not there to be read: they raise.

        Raises ValueError when a length, a count or a number is not as it must be.
        """
        if self.values is None or self.action_logits is None or self.entropies is None:
            raise ValueError("the answer carries no values; ask with entropy: true and return: values")
        rows = [np.asarray(row, np.float32) for row in self.values]
        record = Record.of(
            dict(zip(temperatures, rows, strict=True)),
            np.asarray(self.action_logits, np.float32),
            np.asarray(self.entropies, np.float32),
        )
        if record.length != self.length:
            raise ValueError(f"{record.length} action logits came for a length of {self.length}")
        return record


class ItemAnswer(BaseModel):
    prompt_tokens: list[int] | None = Field(None, description="the prompt's token ids, for text items only")
    completions: list[CompletionAnswer]


class PotentialsAnswer(BaseModel):
    teacher_id: str
    temperatures: list[float]
    items: list[ItemAnswer]


class TeacherInfo(BaseModel):
    """`GET /v1/teacher`. All but the id, the dtype and the quantisation is provenance."""

    id: str
    name: str
    dtype: str
    quantization: str | None = None
    vocab_size: int
    longest_sequence: int
    tokenizer_digest: str | None = None
    chat_template_digest: str | None = None
    engine: str
    engine_version: str
    temperatures: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        description="lowest and highest temperature served"
    )
    value_definition: int = VALUE_DEFINITION


class StoreInfo(BaseModel):
    """`GET /v1/store`. Hits, misses (completions) and corrupt (damaged blocks met) count since the server started."""

    sequences: int
    tokens: int
    bytes: int
    bytes_per_token: float
    hits: int
    misses: int
    corrupt: int
    mantissa_bits: int = Field(description="of float32's 23, how many the numbers keep")
    certificates: list[Certificate] = Field(description="samples computed again, by `tvkd store verify --rescore`")


class Problem(BaseModel):
    """`application/problem+json` (RFC 9457); `code` is stable and names a leaf of the error tree."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str


def first_mistake(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors and where it is, as one line: `items[0].completions[1][3]: … (and 2 more)`."""
    first, *rest = errors
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{place}: {first['msg']}{more}" if place else f"{first['msg']}{more}"
