"""Requests and answers as JSON. A number is written so that reading it as float32 gives the stored bits."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_core import to_json

from tvkd_shared import record as numbers
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.wire import (
    CompletionAnswer,
    PotentialsAnswer,
    PotentialsRequest,
    RequestOptions,
    TextItem,
    first_mistake,
)

MEDIA_TYPE = "application/json"

_MOST_MISTAKES = 1000

_OFFSETS = (
    "for text items only: the characters (Unicode code points) of the completion's text that each token stands for, "
    "as [start, end]; missing where the tokenizer or the chat template does not tell"
)


Model = TypeVar("Model", bound=BaseModel)


def decode_request(body: bytes) -> PotentialsRequest:
    """Raises InvalidRequest with the first mistake and its place."""
    return decode(PotentialsRequest, body)


def decode(model: type[Model], body: bytes) -> Model:
    """A request of this model. Raises InvalidRequest with the first mistake and its place."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if (count := error.error_count()) > _MOST_MISTAKES:
            # To list them, as the unknown fields of a large body, takes seconds in which nothing else runs.
            raise InvalidRequest(f"the body is wrong in {count:,} places, such as unknown fields") from None
        raise InvalidRequest(first_mistake(error.errors(include_url=False, include_input=False))) from error


def encode_request(options: RequestOptions, items: Sequence[TextItem]) -> bytes:
    return PotentialsRequest.model_construct(**dict(options), items=list(items)).model_dump_json(by_alias=True).encode()


def encode_answer(answer: PotentialsAnswer) -> bytes:
    items = []
    for item in answer.items:
        completions = [_completion(completion, answer) for completion in item.completions]
        tokens = {} if item.prompt_tokens is None else {"prompt_tokens": item.prompt_tokens}
        items.append({**tokens, "completions": completions})
    return to_json({"teacher_id": answer.teacher_id, "temperatures": answer.temperatures, "items": items})


def _completion(completion: CompletionAnswer, answer: PotentialsAnswer) -> dict[str, Any]:
    fields: dict[str, Any] = {"key": completion.key.hex(), "cached": completion.cached, "length": completion.length}
    if completion.record is not None:
        fields["values"] = [completion.record.value(tau).tolist() for tau in answer.temperatures]
        for column in _further_columns():
            if column.name in answer.columns:
                fields[column.plural] = completion.record.column(column.name).tolist()
    if completion.tokens is not None:
        fields["tokens"] = completion.tokens
    if completion.ends is not None:
        fields["offsets"] = list(pairwise([0, *completion.ends]))
    return fields


def _further_columns() -> list[numbers.Column]:
    """The columns that are no value."""
    return [column for column in numbers.COLUMNS if numbers.temperature_of(column.name) is None]


def answer_model() -> type[BaseModel]:
    """The answer as a model, for the OpenAPI document."""
    columns: Any = {
        column.plural: (
            list[float] | None,
            Field(None, description=f"{column.name} of each {'state' if column.last_state else 'token'}, when sent"),
        )
        for column in _further_columns()
    }
    ids: Any = (list[int] | None, Field(None, description="token ids, for text items only"))
    completion = create_model(
        "CompletionAnswer",
        key=(str, Field(pattern=r"^[0-9a-f]{32}$")),
        cached=(bool, ...),
        length=(int, Field(ge=1)),
        values=(list[list[float]] | None, Field(None, description="V(s_0) … V(s_T) per temperature, as asked")),
        tokens=ids,
        offsets=(list[tuple[int, int]] | None, Field(None, description=_OFFSETS)),
        **columns,
    )
    item = create_model("ItemAnswer", prompt_tokens=ids, completions=(list[completion], ...))
    return create_model(
        "PotentialsAnswer",
        teacher_id=(str, ...),
        temperatures=(list[float], ...),
        items=(list[item], ...),
    )
