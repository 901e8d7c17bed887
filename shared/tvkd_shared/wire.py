"""What a request and an answer of `POST /v1/potentials` are, and the two descriptions beside it.

`json_codec` and `arrow_codec` say how they are written as bytes; numbers arrive in both to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from tvkd_shared import record as numbers
from tvkd_shared.key import VALUE_DEFINITION, Tokens
from tvkd_shared.record import Record
from tvkd_shared.store.certificate import Certificate

MAX_TEMPERATURES = 8

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
# Lists fail at their first mistake: gathering all mistakes of a large body takes minutes and gigabytes.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
TeacherId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Temperature = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

_CLOSED = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)
"""An unknown field is an error, so that a misspelt one is not ignored."""


class Message(BaseModel):
    model_config = _CLOSED

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TokenItem:
    """One prompt and its completions as token ids of the teacher's vocabulary, in lists or in integer arrays.

    Making one checks nothing: a request that comes as JSON is checked as the annotations say, an Arrow request by its
    codec.
    """

    __pydantic_config__ = _CLOSED

    prompt_token_ids: TokenIds
    completions: Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]


Text = Annotated[str, Field(min_length=1)]


class TextPrompt(BaseModel):
    """A prompt as text, or as a chat's messages, which the teacher's own template puts around each completion."""

    model_config = _CLOSED

    prompt: Text | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    append_eos: bool = Field(False, description="put the end-of-sequence token behind each completion of a text prompt")

    @model_validator(mode="after")
    def _template_ends_messages(self) -> Self:
        if self.append_eos and not isinstance(self.prompt, str):
            raise ValueError("append_eos is for a prompt of text: messages end as the chat template ends them")
        return self


class TextItem(TextPrompt):
    """One prompt and its completions as text."""

    completions: Annotated[list[Text], Field(min_length=1, fail_fast=True)]


def _item_kind(item: Any) -> str:
    is_tokens = isinstance(item, TokenItem) or (isinstance(item, dict) and "prompt_token_ids" in item)
    return "tokens" if is_tokens else "text"


Item = Annotated[Annotated[TokenItem, Tag("tokens")] | Annotated[TextItem, Tag("text")], Discriminator(_item_kind)]


class RequestOptions(BaseModel):
    """What a request says beside its items."""

    model_config = _CLOSED

    temperatures: Annotated[list[Temperature], Field(min_length=1, max_length=MAX_TEMPERATURES)] = [1.0]
    entropy: bool = Field(False, description="send the entropy of each state too")
    teacher_id: TeacherId | None = Field(None, description="409 if another teacher answers")
    cache: Literal["use", "only", "skip"] = Field(
        "use",
        description="use: look up, compute what is missing, keep it. only: a miss is an error, "
        "the teacher is not run. skip: compute anew, neither read nor keep.",
    )
    return_: Literal["values", "digests", "tokens"] = Field(
        "values",
        alias="return",
        description="digests: fill the store, send no values back. tokens: tokenise and check the items alone, asking "
        "neither store nor teacher; `cached` is false",
    )
    stream: bool = Field(
        False, description="send each item when it is computed, in any order; for an answer of values as Arrow"
    )

    @model_validator(mode="after")
    def _options_agree(self) -> "RequestOptions":
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures {self.temperatures} repeat one another")
        if self.stream and self.return_ != "values":
            raise ValueError(f"stream: true sends values as they are computed, and return is {self.return_}")
        if self.return_ == "digests" and self.cache == "skip":
            raise ValueError("return: digests with cache: skip would compute values and drop them")
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns that an answer carries: values as they were asked for, then what is always kept."""
        if self.return_ != "values":
            return ()
        kept = [column.name for column in numbers.COLUMNS if numbers.temperature_of(column.name) is None]
        return (
            *map(numbers.value_column, self.temperatures),
            *(name for name in kept if self.entropy or name != numbers.ENTROPY),
        )


class PotentialsRequest(RequestOptions):
    items: Annotated[list[Item], Field(min_length=1, fail_fast=True)]


@dataclass(slots=True)
class CompletionAnswer:
    """A completion's key, its length T, and its record unless digests were asked for.

    For a text item only: `tokens`, and their `ends` in the text as `tvkd_shared.text.TokenizedItem` has them.
    """

    key: bytes
    cached: bool
    length: int
    record: Record | None = None
    tokens: Tokens | None = None
    ends: Tokens | None = None


@dataclass(slots=True)
class ItemAnswer:
    """The completions of one item in their order; `prompt_tokens` for a text item only."""

    completions: list[CompletionAnswer]
    prompt_tokens: Tokens | None = None


@dataclass(slots=True)
class PotentialsAnswer:
    """The items in their order. `columns` are those of each record that are sent, see `RequestOptions.columns`."""

    teacher_id: str
    temperatures: list[float]
    columns: tuple[str, ...]
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


class Vocabulary(BaseModel):
    """`GET /v1/vocabulary`. The token of each id from 0 on, of the teacher's tokenizer; null for ids that have none."""

    tokens: list[str | None]


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
