"""The items of a request, and what is gathered for them until they are answered, each as soon as it is whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvkd_server.flights import Landing
from tvkd_shared.wire import CompletionAnswer, ItemAnswer, PotentialsRequest

Ready = Callable[[dict[int, ItemAnswer]], None]
"""Takes items of a request that are whole, by their numbers in it."""


@dataclass(slots=True)
class Item:
    """One item of a request: token ids as uint32 arrays, and the keys of its completions."""

    prompt: Any
    completions: list[Any]
    keys: list[bytes]
    ends: list[list[int] | None] | None
    """For a text item: how far into its completion's text each token reaches."""
    landings: dict[bytes, Landing] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Tokens that were sent: the prompt once, or as often as it was tokenised, and each completion."""
        times = 1 if self.ends is None else len(self.keys)
        return times * len(self.prompt) + sum(map(len, self.completions))

    def answer(self, request: PotentialsRequest) -> ItemAnswer:
        completions = []
        for key, ids, ends in zip(self.keys, self.completions, self.ends or [None] * len(self.keys), strict=True):
            landing = self.landings.get(key)
            record = landing.record if landing and request.return_ == "values" else None
            tokens = None if self.ends is None else ids.tolist()
            cached = landing is not None and not landing.computed
            completions.append(CompletionAnswer(key, cached, len(ids), record, tokens, ends))
        return ItemAnswer(completions, None if self.ends is None else self.prompt.tolist())


class Gathering:
    """Which keys of a request are still to land. An item whose keys have all landed is handed on, and let go."""

    def __init__(self, items: Sequence[Item], request: PotentialsRequest, ready: Ready) -> None:
        self._request, self._ready = request, ready
        self._items = dict(enumerate(items))
        self._holders: dict[bytes, list[int]] = {}
        for number, item in self._items.items():
            for key in dict.fromkeys(item.keys):
                self._holders.setdefault(key, []).append(number)

    @property
    def pending(self) -> list[bytes]:
        return list(self._holders)

    def land(self, landings: Mapping[bytes, Landing]) -> None:
        """Take what landed. A key that has landed before is passed over."""
        touched = []
        for key, landing in landings.items():
            for number in self._holders.pop(key, ()):
                self._items[number].landings[key] = landing
                touched.append(number)
        whole = {}
        for number in dict.fromkeys(touched):
            item = self._items[number]
            if len(item.landings) == len(set(item.keys)):
                whole[number] = self._items.pop(number).answer(self._request)
        if whole:
            self._ready(whole)
