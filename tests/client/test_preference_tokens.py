import os

import pytest
from datasets import Dataset
from preference_rows import SHAPES, conversational, plain, words

from tvkd_client import processes, trl_private
from tvkd_client.dataset import Columns
from tvkd_client.preference_tokens import check_vocabulary, tokenize_preferences
from tvkd_client.token_rows import measure
from tvkd_client.trl_private import TOKEN_COLUMNS
from tvkd_shared.errors import InvalidRequest


def token_rows(dataset: Dataset) -> list[dict]:
    return dataset.select_columns(list(TOKEN_COLUMNS)).to_list()


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_that_trl_trains_on(shape, tokenizer, tiny_teacher, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    dataset = Dataset.from_list(SHAPES[shape](6))
    ours = Columns("none").of(dataset, "given") if shape == "implicit plain" else dataset
    config = DPOConfig(tmp_path, use_cpu=True, report_to="none", max_length=None)
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    trainer = DPOTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer)
    assert token_rows(tokenize_preferences(ours, tokenizer)) == token_rows(trainer.train_dataset)


def test_plain_text_ends_with_eos_and_long_rows_stay_whole(tokenizer):
    rows = [{"prompt": words(0, 3000) + " ", "chosen": words(1, 2000), "rejected": words(2, 1)}]
    tokens = tokenize_preferences(Dataset.from_list(rows), tokenizer)[0]
    assert [len(tokens[name]) for name in TOKEN_COLUMNS] == [3000, 2001, 2]
    assert tokens["rejected_ids"][-1] == tokenizer.eos_token_id


def test_measure_counts_tokens_in_row_order(tokenizer):
    tokens = tokenize_preferences(Dataset.from_list(plain(5)), tokenizer).select([3, 1])
    lengths, largest = measure(tokens)
    assert lengths.tolist() == [[len(row[name]) for name in TOKEN_COLUMNS] for row in token_rows(tokens)]
    assert largest == max(max(row[name]) for row in token_rows(tokens) for name in TOKEN_COLUMNS)


def test_a_row_whose_prompt_is_special_tokens_only_is_named(tokenizer):
    rows = [*plain(1), plain(1)[0] | {"prompt": "<pad>"}]
    with pytest.raises(InvalidRequest, match="row 1: the prompt is '<pad>', special tokens only"):
        tokenize_preferences(Dataset.from_list(rows), tokenizer)


def test_a_tokenizer_that_cannot_is_said(tokenizer):
    dataset = Dataset.from_list(conversational(2))
    tokenizer.chat_template = None
    with pytest.raises(InvalidRequest, match="has no chat template"):
        tokenize_preferences(dataset, tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(
        InvalidRequest, match="row 0: the tokenizer's chat template refuses a conversation: no such role"
    ):
        tokenize_preferences(dataset, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InvalidRequest, match="end-of-sequence"):
        tokenize_preferences(Dataset.from_list(plain(2)), tokenizer)


def test_another_trl_fails_loudly(tokenizer, monkeypatch):
    dataset = Dataset.from_list(plain(2))
    with monkeypatch.context() as patch:
        patch.setattr(trl_private.trl, "__version__", "1.17.0")
        with pytest.raises(InvalidRequest, match=r"TRL 1\.17\.0 .* install an unchanged trl.*>=1\.16"):
            tokenize_preferences(dataset, tokenizer)
    monkeypatch.setattr("trl.trainer.dpo_trainer.DPOTrainer._prepare_dataset", lambda self, dataset: dataset)
    with pytest.raises(InvalidRequest, match="_prepare_dataset takes"):
        tokenize_preferences(dataset, tokenizer)


def test_the_teachers_tokenizer_fits_the_teacher_and_another_does_not(server, tokenizer, monkeypatch):
    from tvkd_client.http import TeacherClient

    client = TeacherClient(server.url)
    teacher = client.teacher()
    rows = Dataset.from_list([{"prompt_ids": [8, 10], "chosen_ids": [11], "rejected_ids": [12, 2]}])
    assert client.vocabulary()[8:10] == ["w8", "w9"]
    check_vocabulary(tokenizer, teacher, client, [rows])
    check_vocabulary(tokenizer, teacher)
    vocabulary = dict(tokenizer.get_vocab())
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: vocabulary)
    # Neither an added token nor one that the teacher alone has is used by the rows.
    vocabulary["added"] = 128
    del vocabulary["w9"]
    check_vocabulary(tokenizer, teacher, client, [rows])
    with pytest.raises(InvalidRequest, match=r"another vocabulary than teacher .*; other_vocabulary"):
        check_vocabulary(tokenizer, teacher)
    vocabulary["w8"], vocabulary["w10"], vocabulary["w11"] = 10, 11, 8
    with pytest.raises(InvalidRequest, match=r"in 3 of 5 ids that the data use: 8 is 'w11' here and 'w8' there, 10 is"):
        check_vocabulary(tokenizer, teacher, client, [rows])


def test_many_rows_are_tokenised_by_several_processes_to_the_same_tokens(tokenizer, monkeypatch):
    rows = conversational(7)
    alone = token_rows(tokenize_preferences(Dataset.from_list(rows), tokenizer))
    monkeypatch.setattr(processes, "ROWS_A_PROCESS", 3)
    assert processes.processes(7) == min(2, os.cpu_count() or 1) or None
    assert token_rows(tokenize_preferences(Dataset.from_list(rows), tokenizer)) == alone
    tokenizer.chat_template = "{% if 'never' in messages[0].content %}{{ raise_exception('no') }}{% endif %}x"
    rows[5]["prompt"] = [{"role": "user", "content": "never"}]
    with pytest.raises(InvalidRequest, match="row 5: the tokenizer's chat template refuses a conversation: no"):
        tokenize_preferences(Dataset.from_list(rows), tokenizer)
