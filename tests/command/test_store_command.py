"""`tvkd store`: what a user types and reads."""

import json
import resource
import shutil
import zipfile
from contextlib import closing, contextmanager

import numpy as np
import pytest

from running_server import start_server
from tvkd.cli import main as tvkd
from tvkd.store.command import store as main
from tvkd_shared.record import Record, column_names
from tvkd_shared.store import StoreReader, open_store

PAIRS = [
    {"prompt": f"w{20 + n} w21 ", "chosen": f"w{30 + n} w31 w32", "rejected": f"w{50 + n} w{60 + n}"} for n in range(8)
]


@pytest.fixture(scope="module")
def filled(tiny_teacher, tmp_path_factory):
    """A store that a server filled and closed, and its data set."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    server = start_server(tiny_teacher, folder / "values", "--seal-bytes", "500")
    data = ["--dataset", f"{folder}/pairs.jsonl", "--tokenizer", str(tiny_teacher)]
    for temperatures in ("1.0", "1.0,2.0"):
        assert tvkd(["prefetch", "--server", server.url, *data, "--temperatures", temperatures]) == 0
    assert server.stop() == 0
    return folder


def run(capsys, *arguments):
    """Exit code and what was printed, as JSON."""
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def everything(place):
    with closing(StoreReader(place)) as store:
        numbers = {}
        for name, entry in store.catalog.segments.items():
            for key in store.segment(name).keys():  # noqa: SIM118
                for column in column_names([2.0]):
                    if record := store.get([key.tobytes()], [column])[0]:
                        numbers[key.tobytes(), column] = record.numbers.tobytes()
            assert entry.bytes > 0
        return numbers


def test_info_says_what_is_there_by_teacher(filled, capsys):
    code, said = run(capsys, "info", "--store", filled / "values")
    assert code == 0
    ((teacher, own),) = said["teachers"].items()
    assert (own["sequences"], own["temperatures"]) == (16, [1.0, 2.0])
    assert own["provenance"]["id"] == teacher and own["provenance"]["engine"] == "transformers"
    assert said["tokens"] == own["tokens"] == len(PAIRS) * (3 + 1 + 2 + 1)  # each with its end of sequence
    assert main(["info", "--store", str(filled / "values")]) == 0
    text = " ".join(capsys.readouterr().out.split())  # lines are as long as the terminal is wide
    assert "float32, exact" in text and teacher in text and "temperatures 1.0, 2.0" in text


def test_compact_verify_and_gc_change_no_value(filled, capsys, tmp_path):
    shutil.copytree(filled / "values", tmp_path / "values")
    filled = tmp_path
    with closing(open_store(filled / "values")) as store:
        for number in range(3):
            numbers = np.ones((4, len(column_names())), np.float32)
            numbers[-1, column_names().index("action_logit")] = np.nan
            store.put("t" * 32, [(bytes([number]) * 16, Record(column_names(), numbers))])
            store.seal()
        live = len(store.catalog.segments)
    before = everything(filled / "values")
    code, done = run(capsys, "compact", "--store", filled / "values")
    assert code == 0 and done["segments_before"] > done["segments_after"] == 1
    assert run(capsys, "gc", "--store", filled / "values", "--grace-hours", "0")[1]["files"] > 0
    assert run(capsys, "verify", "--store", filled / "values") == (
        0, {"segments": live - 2, "problems": [], "certificate": None},
    )  # fmt: skip
    assert everything(filled / "values") == before


@pytest.mark.parametrize("output", ["export", "export.zip"])
def test_an_export_is_a_store_with_a_card_and_imports_to_the_bit(filled, capsys, tmp_path, output):
    values, exported, imported = filled / "values", tmp_path / output, tmp_path / "imported"
    code, done = run(capsys, "export", "--store", values, "--output", exported)
    assert code == 0 and done["copied"] == 32 and done["damaged"] == 0
    if exported.suffix == ".zip":
        card = zipfile.ZipFile(exported).read("README.md").decode()
    else:
        card = (exported / "README.md").read_text()
        assert everything(exported) == everything(values)
    (teacher,) = StoreReader(values).teachers()
    assert teacher in card and "16 completions" in card and "$" not in card
    code, done = run(capsys, "import", "--store", imported, "--source", exported)
    assert (code, done) == (0, {"copied": 32, "present": 0, "damaged": 0})
    assert everything(imported) == everything(values)
    assert StoreReader(imported).teachers() == StoreReader(values).teachers()
    assert run(capsys, "import", "--store", imported, "--source", exported)[1]["present"] == 32
    assert run(capsys, "verify", "--store", imported)[0] == 0


def test_an_import_keeps_what_is_there_and_takes_what_a_live_server_has_not_sealed(filled, capsys, tmp_path):
    with closing(open_store(tmp_path / "live")) as live:
        keys = list(dict.fromkeys(key for key, _ in everything(filled / "values")))
        (record,) = StoreReader(filled / "values").get(keys[:1])
        changed = type(record)(record.columns, record.numbers + np.float32(1))
        live.put("t" * 32, [(keys[0], changed)])
        with closing(open_store(tmp_path / "target")) as target:
            target.put("t" * 32, [(keys[1], changed)])
        code, done = run(capsys, "import", "--store", tmp_path / "target", "--source", tmp_path / "live")
        assert (code, done["copied"]) == (0, 1)
    code, done = run(capsys, "import", "--store", tmp_path / "target", "--source", filled / "values")
    assert (code, done["copied"], done["present"]) == (0, 30, 2)
    found = StoreReader(tmp_path / "target").get(keys[:2])
    assert [one.values[1.0].tolist() for one in found] == [changed.values[1.0].tolist()] * 2


def test_a_rescored_sample_becomes_a_certificate_that_a_trainer_can_demand(filled, capsys, tiny_teacher):
    from tvkd_client.source import StoreSource, check_certificate
    from tvkd_shared.errors import InvalidRequest

    source = StoreSource(filled / "values")
    with pytest.raises(InvalidRequest, match="no certificate"):
        check_certificate(source, 1e-4)
    rescore = ["--model", tiny_teacher, "--dataset", filled / "pairs.jsonl", "--tokenizer", tiny_teacher]
    code, said = run(capsys, "verify", "--store", filled / "values", "--rescore", 10, *rescore)
    assert code == 0 and said["certificate"]["sequences"] == 10
    assert said["certificate"]["errors"]["1.0"] <= 1e-4
    (kept,) = StoreReader(filled / "values").certificates()
    assert kept.model_dump() == said["certificate"]
    check_certificate(source, 1e-4)
    with pytest.raises(InvalidRequest, match="errors up to"):
        check_certificate(source, 0.0)
    assert main(["info", "--store", str(filled / "values")]) == 0
    assert "10 sequences computed again by transformers" in " ".join(capsys.readouterr().out.split())


def test_a_data_set_with_columns_of_other_names_is_rescored_as_it_was_prefetched(
    filled, capsys, tiny_teacher, tmp_path
):
    renamed = (filled / "pairs.jsonl").read_text().replace('"prompt"', '"question"').replace('"chosen"', '"better"')
    (tmp_path / "renamed.jsonl").write_text(renamed)
    rescore = ["--model", tiny_teacher, "--dataset", tmp_path / "renamed.jsonl", "--tokenizer", tiny_teacher]
    named = ["--prompt-column", "question", "--chosen-column", "better"]
    code, said = run(capsys, "verify", "--store", filled / "values", "--rescore", 10, *rescore, *named)
    assert code == 0 and said["certificate"]["sequences"] == 10


def test_a_certificate_tells_wrong_values(filled, capsys, tiny_teacher, tmp_path):
    (teacher, provenance), *_ = StoreReader(filled / "values").teachers().items()
    with closing(StoreReader(filled / "values")) as right, closing(open_store(tmp_path / "wrong")) as wrong:
        wrong.add_teacher(teacher, provenance)
        for key in dict.fromkeys(key for key, _ in everything(filled / "values")):
            (record,) = right.get([key])
            shifted = type(record)(record.columns, record.numbers + np.float32(0.5))
            wrong.put(teacher, [(key, shifted)])
    rescore = ["--model", tiny_teacher, "--dataset", filled / "pairs.jsonl", "--tokenizer", tiny_teacher]
    _, said = run(capsys, "verify", "--store", tmp_path / "wrong", "--rescore", 4, *rescore)
    assert said["certificate"]["errors"]["1.0"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["melt"], "no command 'melt'; there are info, verify"),
        (["info"], "--store is needed"),
        (["info", "--store", "{tmp}/none"], "there is no store at"),
        (["compact", "--store", "{tmp}/none"], "there is no store at"),
        (["import", "--store", "{tmp}/new", "--source", "{tmp}/none"], "there is no store at"),
        (["import", "--store", "{tmp}/new", "--source", "{values}/../pairs.jsonl"], "neither a store nor an archive"),
        (["export", "--store", "{values}", "--output", "{tmp}"], "exists already"),
        (["export", "--store", "{values}", "--output", "{tmp}/x", "--teacher-id", "me"], "has no teacher me"),
        (["verify", "--store", "{values}", "--rescore", "3"], "give all four, or none"),
        (["verify", "--store", "ftp://host/x"], "ftp is none of s3, gs, az"),
    ],
)
def test_a_mistake_is_one_line(filled, capsys, tmp_path, arguments, line):
    names = {"tmp": tmp_path, "values": filled / "values"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "x").exists() and not (tmp_path / "none").exists()


def test_damage_is_told_by_name_and_by_exit_code(filled, capsys, tmp_path):
    import shutil

    shutil.copytree(filled / "values", tmp_path / "values")
    file = next((tmp_path / "values" / "segments").glob("*/values/c/0/0"))
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    assert main(["verify", "--store", str(tmp_path / "values")]) == 1
    assert f"segments/{file.parts[-5]}/values" in capsys.readouterr().out
    assert main(["export", "--store", str(tmp_path / "values"), "--output", str(tmp_path / "export")]) == 1
    assert "damaged blocks were left out" in capsys.readouterr().out


@pytest.fixture
def reduced(filled, tmp_path):
    """The same values in a store of 10 mantissa bits."""
    with closing(open_store(tmp_path / "reduced", mantissa_bits=10)):
        pass
    assert main(["import", "--store", str(tmp_path / "reduced"), "--source", str(filled / "values")]) == 0
    return tmp_path / "reduced"


def test_an_import_makes_a_missing_store_of_the_source_s_precision(reduced, capsys, tmp_path):
    assert main(["export", "--store", str(reduced), "--output", str(tmp_path / "export.zip")]) == 0
    capsys.readouterr()
    code, done = run(capsys, "import", "--store", tmp_path / "new", "--source", tmp_path / "export.zip")
    assert (code, done["copied"]) == (0, 32)
    assert StoreReader(tmp_path / "new").format.mantissa_bits == 10
    assert everything(tmp_path / "new") == everything(reduced)


def test_an_import_that_is_refused_makes_nothing(filled, reduced, capsys, tmp_path):
    arguments = ["import", "--store", str(tmp_path / "new"), "--source", str(filled / "values"), "--teacher-id", "me"]
    assert main(arguments) == 2
    assert "has no teacher me" in capsys.readouterr().err and not (tmp_path / "new").exists()
    before = everything(filled / "values")
    assert main(["import", "--store", str(filled / "values"), "--source", str(reduced)]) == 2
    assert "use a store of the same precision" in capsys.readouterr().err
    assert everything(filled / "values") == before


@contextmanager
def files_no_larger_than(size):
    """As a full disk: a write beyond `size` bytes of any file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def packed(folder, archive, below=""):
    with zipfile.ZipFile(archive, "w") as made:
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock"):
            made.write(file, f"{below}{file.relative_to(folder)}")
    return archive


def test_an_archive_that_finds_no_room_is_no_mistake_in_the_archive(filled, capsys, tmp_path):
    archive = packed(filled / "values", tmp_path / "values.zip")
    with files_no_larger_than(16):
        assert main(["import", "--store", str(tmp_path / "new"), "--source", str(archive)]) == 1
    said = capsys.readouterr().err
    assert f"{archive} cannot be unpacked" in said and "TMPDIR" in said and said.count("\n") == 1
    assert "no archive" not in said and not (tmp_path / "new").exists()


def test_an_encrypted_archive_is_one_line(filled, capsys, tmp_path):
    archive = packed(filled / "values", tmp_path / "values.zip")
    content = bytearray(archive.read_bytes())
    for head, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(head)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(head, at + 1)
    archive.write_bytes(content)
    assert main(["import", "--store", str(tmp_path / "new"), "--source", str(archive)]) == 2
    said = capsys.readouterr().err
    assert f"{archive} is encrypted" in said and said.count("\n") == 1


def test_an_archive_of_a_folder_that_holds_the_store_is_read(filled, capsys, tmp_path):
    archive = packed(filled / "values", tmp_path / "values.zip", below="my-values/")
    assert run(capsys, "import", "--store", tmp_path / "new", "--source", archive)[1]["copied"] == 32
    assert everything(tmp_path / "new") == everything(filled / "values")


def test_errors_name_the_archive_and_not_where_it_is_unpacked(filled, capsys, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a").write_text("a")
    archives = {
        packed(tmp_path / "none", tmp_path / "none.zip"): "there is no store at {}: it has no",
        packed(filled / "values", tmp_path / "values.zip"): "store {} has no teacher me",
    }
    for archive, line in archives.items():
        code = main(["import", "--store", str(tmp_path / "new"), "--source", str(archive), "--teacher-id", "me"])
        assert code == 2 and line.format(archive) in capsys.readouterr().err


def test_a_sample_reads_no_more_of_a_data_set_than_it_needs(filled):
    from tvkd.store.rescore import _sample

    class Counting(StoreReader):
        asked = 0

        def get(self, keys, columns=None):
            self.asked += len(keys)
            return super().get(keys, columns)

    store = Counting(filled / "values")
    keys = list(dict.fromkeys(key for key, _ in everything(filled / "values")))
    stored = StoreReader(filled / "values").get(keys)
    keys = [key for key, record in zip(keys, stored, strict=True) if record]
    questions = [([1], [number], keys[number % len(keys)]) for number in range(1000)]
    questions += [([1], [number], bytes(16)) for number in range(1000)]
    sample = _sample(store, list(questions), 20, seed=0)
    assert len(sample) == 20 and all(key in keys for *_, key in sample)
    assert store.asked <= 256
    assert len(_sample(store, list(questions), 1000, seed=0)) == 1000
