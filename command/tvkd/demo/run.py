"""The demo from top to bottom. Read it as the shortest account of how the parts fit together."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from rich.console import Console
from transformers import AutoTokenizer

from tvkd.demo.control import choose
from tvkd.demo.demo import Demo
from tvkd.demo.logit_bytes import logit_bytes
from tvkd.demo.margins import Records, length_differences, log_prob_margins, shaping_margins, shaping_weight
from tvkd.demo.pairs import pairs_file
from tvkd.demo.report import Fill, Summary, show
from tvkd.demo.student import load, student_directory
from tvkd.demo.teacher import teacher_directory
from tvkd.demo.training import BATCH, HeldOut, align, held_out, pair_log_probs
from tvkd.study.controls import ShuffledSource, TrainingPairs
from tvkd_client.dataset import load_preferences
from tvkd_client.http import TeacherClient
from tvkd_client.margins import LOG_PROB, READINGS, statistics_of
from tvkd_client.own_server import Server, running_server
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.prefetch import Prefetch
from tvkd_client.source import StoreSource, ValueSource
from tvkd_shared.errors import InvalidRequest, TVKDError
from tvkd_shared.shaping import Shaping
from tvkd_shared.store import StoreReader

_MARKER = ".made-by-tvkd-demo"
_SAMPLE = 16  # pairs whose whole distributions are written, to weigh them


def run(settings: Demo) -> int:
    """All of it; the output folder then holds the store, the server's log and summary.json. Returns 0.

    Raises InvalidRequest for settings that do not go together, TeacherUnavailable when the teacher cannot be made or
    served, TVKDError when the second fill ran the teacher.
    """
    console, clock = Console(), _Clock()
    shaping: Shaping = settings.shaping
    output = _folder(settings.output)
    data = _data(output, settings.pairs)
    pairs = load_preferences(str(data))

    console.rule("1. A teacher, and its values of every pair, over HTTP", align="left")
    with clock.stage("teacher"):
        teacher = teacher_directory(console)
    with (
        clock.stage("server and two fills"),
        running_server(teacher, output / "store", output / "server.log", "--engine", settings.engine) as server,
    ):
        console.print(f"tvkd serve: {teacher.name} at {server.url}")
        filling = Prefetch(
            server=server.url, dataset=str(data), tokenizer=str(teacher), temperatures=list(shaping.temperatures)
        )
        fills = _fill(server, filling), _fill(server, filling)
        info, recent = TeacherClient(server.url).teacher(), TeacherClient(server.url).store()
    if fills[1].computed_completions or fills[1].teacher_tokens:
        raise TVKDError(f"the second fill ran the teacher on {fills[1].teacher_tokens} tokens; all were stored before")

    console.rule("2. The server is gone; from here on the store is read", align="left")
    source = StoreSource(output / "store", shaping.temperatures, info.id)
    sealed = StoreReader(output / "store").counts()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokens = tokenize_preferences(pairs, tokenizer)
    with clock.stage("margins and logit bytes"):
        records = _records(source, tokens)
        own, lengths = log_prob_margins(records), length_differences(records)
        margins = {name: shaping_margins(records, choices) for name, choices in READINGS.items()} | {LOG_PROB: own}
        statistics = {name: statistics_of(of_pairs, lengths, own) for name, of_pairs in margins.items()}
        split = choose(tokens, settings.steps * BATCH, settings.seed)
        alpha = shaping_weight([records[index] for index in split.used], shaping)
        sample = tokens.select(range(min(_SAMPLE, len(tokens))))
        alternatives = logit_bytes(teacher, sample["prompt_ids"][:], sample["chosen_ids"][:])

    console.rule("3. Students from the store: DPO, TVKD, and TVKD with ψ shuffled", align="left")
    with clock.stage("student"):
        train = tokens.select(split.train)
        student = student_directory(teacher, info.id, train["prompt_ids"][:], train["chosen_ids"][:])
    runs: dict[str, tuple[float, ValueSource]] = {
        "DPO": (0.0, source),
        "TVKD": (alpha, source),
        "TVKD, ψ shuffled": (alpha, ShuffledSource(source, TrainingPairs.of(train), split.partner)),
    }
    unseen = tokens.select(split.unseen)
    reference_N2 = pair_log_probs(load(student), unseen)
    heldout: dict[str, HeldOut] = {}
    for name, (weight, values) in runs.items():
        with clock.stage(name):
            trained = align(
                name, student, tokenizer, pairs.select(split.used), output / "trainer",
                alpha=weight, shaping=shaping, source=values, seed=settings.seed, console=console,
            )  # fmt: skip
            heldout[name] = held_out(pair_log_probs(trained, unseen), reference_N2)

    console.rule("4. What was found", align="left")
    summary = Summary(
        teacher_id=info.id,
        teacher_name=info.name,
        pairs=len(pairs),
        sequences=sealed.sequences,
        tokens=sealed.tokens,
        bytes_recent=recent.bytes_per_token,
        bytes_sealed=sealed.bytes / sealed.tokens,
        bytes_alternatives=alternatives,
        fills=fills,
        readings=statistics,
        shaping=shaping,
        alpha=alpha,
        train_pairs=len(split.used),
        heldout_pairs=len(split.unseen),
        heldout=heldout,
        seconds=clock.seconds,
    )
    summary.write(output / "summary.json")
    show(summary, console)
    console.print(f"\nAll of it is in {output / 'summary.json'}; the values are in {output / 'store'}.")
    return 0


class _Clock:
    """Wall-clock seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


def _folder(output: Path) -> Path:
    """The output folder without an earlier demo's store, so that the first fill is one. Nothing else is removed."""
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / _MARKER).exists())):
        raise InvalidRequest(f"--output {output} is there and was not made by the demo; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    (output / _MARKER).touch()
    shutil.rmtree(output / "store", ignore_errors=True)
    return output


def _data(output: Path, count: int | None) -> Path:
    if count is None:
        return pairs_file()
    lines = pairs_file().read_text(encoding="utf-8").splitlines(keepends=True)
    few = output / "pairs.jsonl"
    few.write_text("".join(lines[:count]), encoding="utf-8")
    return few


def _fill(server: Server, settings: Prefetch) -> Fill:
    counters = "tvkd_computed_completions_total", "tvkd_teacher_tokens_total"
    before = [server.counter(name) for name in counters]
    start = time.monotonic()
    if settings.run() != 0:
        raise KeyboardInterrupt
    seconds = time.monotonic() - start
    computed, tokens = (server.counter(name) - count for name, count in zip(counters, before, strict=True))
    return Fill(round(seconds, 1), computed, tokens)


def _records(source: ValueSource, tokens: datasets.Dataset) -> Records:
    prompts = tokens["prompt_ids"][:]
    sides = [source.fetch(prompts, tokens[side][:]) for side in ("chosen_ids", "rejected_ids")]
    return list(zip(*sides, strict=True))
