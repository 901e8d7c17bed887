"""`tvkd store export` and `import`: what goes from one store into another, by folder or by archive."""

import zipfile
from contextlib import closing

import numpy as np
import pytest
from store_commands import everything, run

from full_disk import files_no_larger_than
from tvkd.store.command import store as main
from tvkd_shared.store import StoreReader, open_store


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
