"""The models whose values a run reads: the teacher, what its DPO started from, and the student's reference."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import get_args

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from tvkd_client.config import TVKDConfig
from tvkd_client.preference_tokens import NO_TOKENIZER, are_chats, check_vocabulary, other_template
from tvkd_client.source import ServerSource, ValueSource, check_certificate, source_at, teacher_of
from tvkd_client.teacher_tokens import TeacherTokenizer
from tvkd_client.training_settings import Role
from tvkd_shared.errors import InvalidRequest, TeacherMismatch, TVKDError, WrongAnswer
from tvkd_shared.record import Record

logger = logging.getLogger(__name__)

Sources = Mapping[Role, ValueSource]


def open_sources(args: TVKDConfig, given: Sources) -> dict[Role, ValueSource]:
    """The source of each role that the settings' objective reads: the given one, or else the one at the role's place.

    Each is asked for its model's id, so that a missing server is reported within a second. Raises InvalidRequest when
    a role is needed and has no place, or when teacher and base are one model; TeacherMismatch when a source has another
    model than the settings name.
    """
    if unknown := set(given) - set(get_args(Role)):
        raise InvalidRequest(f"sources name {', '.join(sorted(unknown))}; the roles are {', '.join(get_args(Role))}")
    sources: dict[Role, ValueSource] = {}
    for role in get_args(Role):
        place, named = getattr(args, role), getattr(args, f"{role}_id")
        if not args.reads(role) or (role not in given and place is None):
            continue
        with named_in_errors(role):
            sources[role] = given[role] if role in given else source_at(place, args.temperatures_of(role), named)
            answering = sources[role].teacher_id
            if role in given and named not in (None, answering):
                raise TeacherMismatch(f"values come from model {answering}, not from {named}")
    if args.reads("teacher") and "teacher" not in sources:
        raise InvalidRequest(
            f"objective {args.objective}{f' with alpha {args.alpha}' if args.objective == 'tvkd' else ''} needs values "
            "and no teacher is set; set teacher to a server's URL or a store"
        )
    _check_base(args, sources)
    return sources


def base_role(sources: Sources) -> Role | None:
    """The model that advantages are taken against: T0, or else the student's reference; None where neither is read."""
    bases: tuple[Role, ...] = ("teacher_reference", "reference")
    return next((role for role in bases if role in sources), None)


def _check_base(args: TVKDConfig, sources: Sources) -> None:
    if not args.reads("teacher_reference"):
        return
    base = base_role(sources)
    if base is None and (args.objective == "tvkd" or args.center):
        what = "center needs A of all the data" if args.center else f"potential {args.potential} compares two models"
        raise InvalidRequest(f"{what}, and neither teacher_reference nor reference is set; set one of them")
    if base is not None and sources[base].teacher_id == sources["teacher"].teacher_id:
        raise InvalidRequest(
            f"teacher and {base} are one model, {sources[base].teacher_id}: every advantage would be 0; "
            "name the model that the teacher's DPO started from"
        )


def check_models(
    sources: Sources,
    args: TVKDConfig,
    tokenizer: PreTrainedTokenizerBase,
    data_sets: Iterable[Dataset | IterableDataset],
    of_teacher: TeacherTokenizer | None,
) -> None:
    """Raises InvalidRequest when a model has larger errors than asked, or other tokens than it is asked for.

    Those are the student's in the data, and of teacher and teacher_reference those of `of_teacher` where it is set. A
    warning says where conversations are written by another chat template than that of the model which reads them, and
    where a model was saved without the tokenizer that would be compared.
    """
    data_sets = list(data_sets)
    chats = any(map(are_chats, data_sets))
    known = [rows for rows in data_sets if isinstance(rows, Dataset)]
    for role, source in sources.items():
        with named_in_errors(role):
            if args.max_value_error is not None:
                check_certificate(source, args.max_value_error)
            own = of_teacher if role != "reference" else None
            by_student = chats and own is None
            model = teacher_of(source) if by_student or not args.other_vocabulary else None
            if model is None:
                continue
            if by_student and args.process_index == 0 and (warning := other_template(tokenizer, model)):
                logger.warning("%s: %s", role, warning)
            if args.other_vocabulary:
                continue
            if model.tokenizer_digest is None and args.process_index == 0:
                logger.warning("%s: %s", role, NO_TOKENIZER)
            if own is not None:
                own.check(model, template=role == "teacher")
            else:
                # Which tokens a stream will use is not known.
                streams = len(known) < len(data_sets)
                client = source.client if isinstance(source, ServerSource) and not streams else None
                check_vocabulary(tokenizer, model, client, known)


def records_of(
    role: Role, source: ValueSource, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[Record]:
    """The records that a role's source has of these completions.

    Raises WrongAnswer when they do not fit in number or length, and whatever the source raises; each error of tvkd's
    names the role.
    """
    with named_in_errors(role):
        records = source.fetch(prompts, completions)
        if len(records) != len(completions):
            raise WrongAnswer(f"the source returned {len(records)} records for {len(completions)} completions")
        for record, completion in zip(records, completions, strict=True):
            if record.length != len(completion):
                raise WrongAnswer(
                    f"the source returned values of {record.length} tokens for a completion of {len(completion)}"
                )
    return records


@contextmanager
def named_in_errors(role: Role) -> Iterator[None]:
    """Puts the role in front of an error's message."""
    try:
        yield
    except TVKDError as error:
        raise type(error)(f"{role}: {error.message}", retry_after=error.retry_after) from error
