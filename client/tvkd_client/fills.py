"""What a prefetch fills: which models' values, and of which tokens. A training's file says it all."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, get_args

from tvkd_client.training_settings import Role
from tvkd_shared.errors import InvalidRequest

if TYPE_CHECKING:
    import datasets


class Fill(NamedTuple):
    """One model's values at some temperatures: through a server, or else with a model's folder into a store."""

    what: str
    temperatures: list[float]
    server: str | None
    model: str | None
    store: str | None
    teacher_id: str | None


Splits = Callable[[], "dict[str, datasets.Dataset]"]
"""Reads the data sets, by the name of their split."""


class Work(NamedTuple):
    """What is to be filled: values of models, of the tokens that tokenizers make of data sets."""

    fills: list[Fill]
    tokenizer: str
    splits: Splits
    teacher_tokenizer: str | None = None
    other_vocabulary: bool = False


def of_training(file: str, *, models: bool) -> Work:
    """What a training file's run will read.

    Raises InvalidRequest for a role whose place is a store, unless `models` is set and the file names its model.
    """
    from tvkd_client.source import is_server  # noqa: PLC0415
    from tvkd_client.train import pairs_of, parse  # noqa: PLC0415

    script, training, model, mixture = parse(["--config", file])
    student = str(model.model_name_or_path)
    checkpoints = {"teacher": training.teacher_model, "teacher_reference": training.teacher_reference_model}
    fills = []
    for role in get_args(Role):
        place, checkpoint = getattr(training, role), checkpoints.get(role, student)
        if not training.reads(role) or place is None:
            continue
        if not is_server(place) and (not models or checkpoint is None):
            lacking = f"set {role}_model" if models else "add --models to run its model"
            raise InvalidRequest(f"{role}: {place} is a store, which a model has to fill; {lacking}")
        server, store = (place, None) if is_server(place) else (None, place)
        temperatures = list(training.temperatures_of(role))
        fills.append(Fill(role, temperatures, server, checkpoint, store, getattr(training, f"{role}_id")))
    if not fills:
        raise InvalidRequest(f"{file} names no place of values that its objective reads; set teacher, or reference")
    splits = partial(pairs_of, script, training, mixture)
    return Work(fills, student, splits, training.teacher_tokenizer, training.other_vocabulary)
