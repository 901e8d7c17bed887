"""The demo from top to bottom. Read it as the shortest account of how the parts fit together."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from rich.console import Console
from transformers import AutoTokenizer

from tvkd.demo import arms
from tvkd.demo.demo import Demo
from tvkd.demo.logit_bytes import logit_bytes
from tvkd.demo.pairs import pairs_file
from tvkd.demo.report import Fill, Summary, bytes_table, cross_entropy_table, fills_table
from tvkd.demo.student import student_directory
from tvkd.demo.teacher import teacher_directory
from tvkd.study.command import StudyCommand
from tvkd_client.dataset import load_preferences
from tvkd_client.http import TeacherClient
from tvkd_client.own_server import Server, running_server
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.prefetch import Prefetch
from tvkd_client.preview import Preview, scores_of, summary
from tvkd_client.source import StoreSource, ValueSource
from tvkd_shared.errors import InvalidRequest, TVKDError
from tvkd_shared.store import StoreReader

_MARKER = ".made-by-tvkd-demo"
_SAMPLE = 16  # completions whose whole distributions are written, to weigh them


def run(settings: Demo) -> int:
    """All of it; the output folder then holds the store, the server's log, the study and summary.json. Returns 0.

    Raises InvalidRequest for settings that do not go together, TeacherUnavailable when the teacher cannot be made or
    served, TVKDError when the second fill ran the teacher.
    """
    console, clock = Console(), _Clock()
    output = _folder(settings.output)
    splits, pairs, store = write_data(output / "data", settings.pairs), str(output / "data/*.jsonl"), output / "store"

    console.rule("A teacher, and its values of every pair, over HTTP", align="left")
    with clock.stage("teacher"):
        teacher = teacher_directory(console)
    with (
        clock.stage("server and two fills"),
        running_server(teacher, store, output / "server.log", "--engine", settings.engine) as server,
    ):
        console.print(f"tvkd serve: {teacher.name} at {server.url}")
        filling = Prefetch(server=server.url, dataset=pairs, tokenizer=str(teacher))
        fills = _fill(server, filling), _fill(server, filling)
        info, recent = TeacherClient(server.url).teacher(), TeacherClient(server.url).store()
    if fills[1].computed_completions or fills[1].teacher_tokens:
        raise TVKDError(f"the second fill ran the teacher on {fills[1].teacher_tokens} tokens; all were stored before")

    sealed = StoreReader(store).counts()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokens = {split: tokenize_preferences(load_preferences(str(output / "data"), split), tokenizer) for split in splits}
    train = tokens["train"].select_columns(["prompt_ids", "chosen_ids"])
    with clock.stage("bytes of logits"):
        alternatives = logit_bytes(teacher, *train[:_SAMPLE].values())
    found = Summary(
        teacher_id=info.id,
        teacher_name=info.name,
        pairs=sum(splits.values()),
        sequences=sealed.sequences,
        tokens=sealed.tokens,
        bytes_recent=recent.bytes_per_token,
        bytes_sealed=sealed.bytes / sealed.tokens,
        bytes_alternatives=alternatives,
        fills=fills,
        heldout_pairs=splits["test"],
        seconds=clock.seconds,
    )
    console.print(fills_table(found), bytes_table(found), "The server is gone; from here on its store is read.")

    student = None
    if settings.steps:
        console.rule("A student: half of the teacher's layers, distilled", align="left")
        with clock.stage("student"):
            student = student_directory(teacher, info.id, *train[:].values())
        with clock.stage("the student's own log-probs"):
            Prefetch(model=str(student), store=str(store), dataset=pairs, tokenizer=str(teacher), quiet=True).run()
        names = {"teacher": info.name, "student": student.name}
        found.heldout_cross_entropy.update(_cross_entropy(store, names, tokens["test"]))
        console.print(cross_entropy_table(found))

    console.rule("Look before training: tvkd preview", align="left")
    with clock.stage("preview"):
        Preview(
            dataset=pairs, tokenizer=str(teacher), html=output / "preview.html", store=str(store), teacher_id=info.name,
            reference=str(store) if student else None, reference_id=student.name if student else None,
        ).run()  # fmt: skip

    if student:
        console.rule("Students from the store: tvkd study", align="left")
        study = output / "study.yaml"
        content = arms.study_file(output, student, info.name, steps=settings.steps, seeds=settings.seeds)
        study.write_text(content, encoding="utf-8")
        # Two runs at once, each on half of the processors.
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
        with clock.stage("study"):
            StudyCommand(file=str(study), jobs=2).run()
        console.print(
            f"More seeds tell more: name them in {study} and run `tvkd study {study}`, which goes on from here."
        )
    found.write(output / "summary.json")
    console.print(f"What was measured is in {output / 'summary.json'}; the values are in {store}.")
    return 0


def _cross_entropy(store: Path, names: dict[str, str], tokens: Dataset) -> dict[str, dict[str, float]]:
    """Of each model, chosen and rejected, in nats a token, from what the store has of them."""
    sources: dict[str, ValueSource] = {role: StoreSource(store, teacher_id=name) for role, name in names.items()}
    found: dict[str, dict[str, float]] = summary(scores_of(tokens, sources, {}, len), list(names), None)[
        "cross_entropy"
    ]
    return found


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
    """The output folder without what an earlier demo made, so that the first fill is one. Nothing else is removed."""
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / _MARKER).exists())):
        raise InvalidRequest(f"--output {output} is there and was not made by the demo; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    (output / _MARKER).touch()
    for made in ("store", "data", "study"):
        shutil.rmtree(output / made, ignore_errors=True)
    return output


def write_data(folder: Path, count: int | None) -> dict[str, int]:
    """The demo's pairs, or the first so many, as files of a train and a test split. Returns how many each has."""
    folder.mkdir()
    rows = [json.loads(line) for line in pairs_file().read_text(encoding="utf-8").splitlines()[:count]]
    splits = {"train": [row for row in rows if row["split"] == "train"]}
    splits["test"] = [row for row in rows if row["split"] == "heldout"]
    if len(splits["train"]) < 2 or not splits["test"]:
        raise InvalidRequest(
            f"of {len(rows)} pairs {len(splits['train'])} are for training and {len(splits['test'])} "
            "are held out; take more"
        )
    for split, some in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in some]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {split: len(some) for split, some in splits.items()}


def _fill(server: Server, settings: Prefetch) -> Fill:
    counters = "tvkd_computed_completions_total", "tvkd_teacher_tokens_total"
    before = [server.counter(name) for name in counters]
    start = time.monotonic()
    if settings.run() != 0:
        raise KeyboardInterrupt
    seconds = time.monotonic() - start
    computed, tokens = (server.counter(name) - count for name, count in zip(counters, before, strict=True))
    return Fill(round(seconds, 1), computed, tokens)
