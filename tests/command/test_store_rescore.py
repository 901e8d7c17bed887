"""`tvkd store verify --rescore`: a sample of a store's values, computed again."""

import shutil
from contextlib import closing

import numpy as np
import pytest
from store_commands import everything, run

from tvkd.store.command import store as main
from tvkd.store.rescore import _sample
from tvkd_client.source import StoreSource, check_certificate
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.store import StoreReader, open_store


@pytest.fixture
def values(filled, tmp_path):
    """A copy of the store, for a certificate to be written into."""
    return shutil.copytree(filled / "values", tmp_path / "values")


def test_a_rescored_sample_becomes_a_certificate_that_a_trainer_can_demand(filled, values, capsys, tiny_teacher):
    source = StoreSource(values)
    with pytest.raises(InvalidRequest, match="no certificate"):
        check_certificate(source, 1e-4)
    rescore = ["--model", tiny_teacher, "--dataset", filled / "pairs.jsonl", "--tokenizer", tiny_teacher]
    code, said = run(capsys, "verify", "--store", values, "--rescore", 10, *rescore)
    assert code == 0 and said["certificate"]["sequences"] == 10
    assert said["certificate"]["errors"]["1.0"] <= 1e-4
    (kept,) = StoreReader(values).certificates()
    assert kept.model_dump() == said["certificate"]
    check_certificate(source, 1e-4)
    with pytest.raises(InvalidRequest, match="errors up to"):
        check_certificate(source, 0.0)
    assert main(["info", "--store", str(values)]) == 0
    assert "10 sequences computed again by transformers" in " ".join(capsys.readouterr().out.split())


def test_a_data_set_with_columns_of_other_names_is_rescored_as_it_was_prefetched(
    filled, values, capsys, tiny_teacher, tmp_path
):
    renamed = (filled / "pairs.jsonl").read_text().replace('"prompt"', '"question"').replace('"chosen"', '"better"')
    (tmp_path / "renamed.jsonl").write_text(renamed)
    rescore = ["--model", tiny_teacher, "--dataset", tmp_path / "renamed.jsonl", "--tokenizer", tiny_teacher]
    named = ["--prompt-column", "question", "--chosen-column", "better"]
    code, said = run(capsys, "verify", "--store", values, "--rescore", 10, *rescore, *named)
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


def test_a_sample_reads_no_more_of_a_data_set_than_it_needs(filled):
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
