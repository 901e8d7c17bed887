"""One pair in numbers, as the page at `/` draws it: values from the service, read by `tvkd_shared.shaping`."""

import asyncio
import re
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, create_model, model_validator

from tvkd_server.keys import Client
from tvkd_server.service import Service
from tvkd_server.teachers.tokenizer import Tokenizer
from tvkd_shared.errors import InvalidRequest, PayloadTooLarge
from tvkd_shared.key import Tokens
from tvkd_shared.objective import starting_weight
from tvkd_shared.record import Record
from tvkd_shared.settings import shaping_fields
from tvkd_shared.shaping import POTENTIALS, Shaping, aggregate, log_probs
from tvkd_shared.wire import CompletionAnswer, PotentialsAnswer, PotentialsRequest, Text, TextItem, TextPrompt

_STRICT = ConfigDict(extra="forbid", strict=True)
_Choices: Any = create_model("Choices", __config__=_STRICT, **shaping_fields())


class PairRequest(TextPrompt):
    """A pair as text, and how it is read."""

    model_config = _STRICT

    chosen: Text
    rejected: Text
    shaping: Annotated[_Choices, Field(description="the choices that make ψ, as in `tvkd train`")] = _Choices()
    alpha: FiniteFloat = Field(1.0, description="α of the loss")

    @model_validator(mode="after")
    def _can_be_read(self) -> "PairRequest":
        if POTENTIALS[self.how.potential].relative:
            raise ValueError(
                f"potential {self.how.potential} compares two models, and a server runs one: "
                "use `tvkd show --teacher-reference`"
            )
        return self

    @property
    def how(self) -> Shaping:
        return Shaping(**self.shaping.model_dump())


class Side(BaseModel):
    """One completion of T tokens. Of state s_t, in which token t was chosen, and s_T behind the last: T + 1 numbers."""

    key: str
    cached: bool
    length: int = Field(description="T")
    tokens: list[int] = Field(description="their ids, T")
    words: list[str] = Field(description="each token as text, T; made of the text given, where the tokenizer tells")
    values: list[float] = Field(description="V_τ(s_t), T + 1")
    entropies: list[float] = Field(description="H(s_t), T + 1")
    log_probs: list[float] = Field(description="log π(y_t|s_t), T")
    psi: list[float] = Field(description="ψ_t, T")
    shaping: float = Field(description="S, the sum or the mean of ψ")


class PairAnswer(BaseModel):
    """The pair's numbers, and what its margin would do to the gradient before the first step."""

    teacher_id: str
    temperature: float = Field(description="τ of `values`: the potential's, or 1 where it has none")
    chosen: Side
    rejected: Side
    margin: float = Field(description="m = S(chosen) − S(rejected)")
    alpha: float
    weight: float = Field(description="σ(−α·m), the weight of the pair's gradient; under DPO it is ½")


async def pair(service: Service, request: PairRequest, client: Client) -> PairAnswer:
    """The pair's numbers, by way of `Service.potentials`. Raises as that does, with this request's names for places."""
    how, completions = request.how, [request.chosen, request.rejected]
    item = TextItem(prompt=request.prompt, completions=completions, append_eos=request.append_eos)
    question = PotentialsRequest(temperatures=list(how.temperatures), items=[item])
    try:
        answer = await service.potentials(question, client)
    except (InvalidRequest, PayloadTooLarge) as error:
        raise type(error)(_in_words_of_a_pair(error.message)) from error
    return await asyncio.to_thread(_read, request, answer, service.teacher.tokenizer)


def _read(request: PairRequest, answer: PotentialsAnswer, tokenizer: Tokenizer) -> PairAnswer:
    """Its maths, which takes some hundredths of a second for long answers."""
    how = request.how
    tau = how.temperature if how.reads_temperature else 1.0
    chosen, rejected = (
        _side(completion, text, how, tau, tokenizer)
        for completion, text in zip(answer.items[0].completions, (request.chosen, request.rejected), strict=True)
    )
    margin = chosen.shaping - rejected.shaping
    return PairAnswer(
        teacher_id=answer.teacher_id,
        temperature=tau,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        alpha=request.alpha,
        weight=float(starting_weight(request.alpha, margin)),
    )


def _side(completion: CompletionAnswer, text: str, how: Shaping, tau: float, tokenizer: Tokenizer) -> Side:
    # A text item is answered with its tokens, and one whose values were asked for with its record.
    record, tokens = cast(Record, completion.record), list(cast(Tokens, completion.tokens))
    psi_T = how.psi(record, kept=record.length, end=tokenizer.ending_of(tokens))
    return Side(
        key=completion.key.hex(),
        cached=completion.cached,
        length=completion.length,
        tokens=tokens,
        words=_words(tokenizer.words(tokens), completion.ends, text),
        values=record.value(tau).tolist(),
        entropies=record.entropies.tolist(),
        log_probs=log_probs(record, record.length).tolist(),
        psi=psi_T.tolist(),
        shaping=aggregate(psi_T, how.aggregate),
    )


def _words(decoded: list[str], ends: Tokens | None, text: str) -> list[str]:
    """Each token's own characters of the text; where it has none, as the end-of-sequence token, what it decodes to."""
    if ends is None:
        return decoded
    starts = [0, *ends[:-1]]
    return [text[start:end] or word for start, end, word in zip(starts, ends, decoded, strict=True)]


def _in_words_of_a_pair(message: str) -> str:
    """The service's line about one item of two completions and its temperatures, in the words of this request."""
    names = {"items[0]: ": "", "completions[0]": "chosen", "completions[1]": "rejected"}
    for of_items, of_pair in names.items():
        message = message.replace(of_items, of_pair)
    return re.sub(r"temperatures\[\d\]", "temperature", message)
