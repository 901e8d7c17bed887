"""What a teacher can be asked: the limits that hold before a request reaches any engine."""

from collections.abc import Sequence

import numpy as np

from tvkd_shared.errors import InvalidRequest, SequenceTooLong, TemperatureNotServed, TokenOutOfRange
from tvkd_shared.wire import TeacherInfo

TEMPERATURES = [0.1, 10.0]
"""Lowest and highest temperature served: float32 holds V_τ to 1e-4 between them."""


def check(
    info: TeacherInfo,
    prompt_token_ids: Sequence[int],
    completions: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    where: str = "",
) -> None:
    """Refuse what the teacher cannot answer. `where` names the item in the message, such as "items[3]".

    Raises TokenOutOfRange, SequenceTooLong or TemperatureNotServed with the index and the value, and InvalidRequest
    for an empty prompt, an empty completion or no completion at all.
    """
    at = f"{where}: " if where else ""
    lowest, highest = info.temperatures
    for index, temperature in enumerate(temperatures):
        if not lowest <= temperature <= highest:
            raise TemperatureNotServed(f"{at}temperatures[{index}] is {temperature}; served are {lowest} … {highest}")
    if not completions:
        raise InvalidRequest(f"{at}the prompt has no completion; one at least is needed")
    named = [("prompt_token_ids", prompt_token_ids)]
    named += [(f"completions[{index}]", completion) for index, completion in enumerate(completions)]
    for name, token_ids in named:
        if len(token_ids) == 0:
            raise InvalidRequest(f"{at}{name} is empty; one token at least is needed")
        if min(token_ids) < 0 or max(token_ids) >= info.vocab_size:
            outside = (np.asarray(token_ids) < 0) | (np.asarray(token_ids) >= info.vocab_size)
            index = int(outside.argmax())
            raise TokenOutOfRange(
                f"{at}{name}[{index}] is {token_ids[index]}; the teacher's tokens are 0 … {info.vocab_size - 1}"
            )
    for index, completion in enumerate(completions):
        length = len(prompt_token_ids) + len(completion)
        if length > info.longest_sequence:
            raise SequenceTooLong(
                f"{at}the prompt and completions[{index}] are {len(prompt_token_ids)} + {len(completion)} = {length} "
                f"tokens; the teacher's longest sequence is {info.longest_sequence}: shorten it, nothing is cut here"
            )
