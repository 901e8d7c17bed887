"""Several API keys from a file: who is let in, with what rights and limits, and what of a key is never shown."""

import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import httpx
import pytest

from running_server import refusal_of, start_server
from tvkd_server.admission import Admission
from tvkd_server.keys import Client, Keys
from tvkd_server.turns import Asker
from tvkd_shared.errors import InvalidRequest, Overloaded

TRAINER, READER, SMALL, SINGLE = "trainer-secret", "reader-secret", "small-secret", "single-secret"


def table(name, key, *lines):
    return "\n".join([f"[{name}]", f'sha256 = "{sha256(key.encode()).hexdigest()}"', *lines, ""])


FILE = table("trainer", TRAINER) + table("reader", READER, "read_only = true")
FILE += table("small", SMALL, "max_queued_tokens = 300")


@pytest.fixture(scope="module")
def keyed(tiny_teacher, tmp_path_factory):
    """A server with a file of three keys, and one key in the environment beside it."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys.toml").write_text(FILE)
    flags = ["--api-keys", folder / "keys.toml"]
    server = start_server(tiny_teacher, folder / "values", *flags, environment={"TVKD_API_KEY": SINGLE})
    yield server
    server.kill()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "keys.toml").write_text(FILE)
    return tmp_path / "keys.toml"


def item(first, length=3):
    return {"prompt_token_ids": [9, first], "completions": [[10] * length]}


def post(server, key, items, **options):
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/potentials", json={"items": items} | options, headers=headers, timeout=60)


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    return answer.json()["detail"]


def test_each_key_of_the_file_and_the_single_one_are_let_in_and_no_digest_is(keyed):
    assert post(keyed, TRAINER, [item(20)]).status_code == 200
    for key in (TRAINER, READER, SMALL, SINGLE):
        assert post(keyed, key, [item(20)]).json()["items"][0]["completions"][0]["cached"]
    for key in ("trainer", sha256(TRAINER.encode()).hexdigest(), TRAINER + "2"):
        refused(post(keyed, key, [item(20)]), 401, "unauthorized")


def test_a_key_that_only_reads_has_nothing_computed(keyed):
    before = keyed.metric("tvkd_computed_completions_total")
    for cache in ("use", "only"):
        assert "this API key only reads" in refused(post(keyed, READER, [item(21)], cache=cache), 404, "not-cached")
    assert "cache: skip" in refused(post(keyed, READER, [item(21)], cache="skip"), 403, "forbidden")
    refused(post(keyed, READER, [item(21)], **{"return": "digests"}), 404, "not-cached")
    assert post(keyed, READER, [item(21)], **{"return": "tokens"}).status_code == 200
    assert keyed.metric("tvkd_computed_completions_total") == before


def test_a_key_whose_own_queue_is_full_is_told_when_to_try_again(keyed):
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: post(keyed, SMALL, [item(30 + n, 200)]), range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert "tokens of this API key are queued" in refused(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1


def test_what_another_key_of_one_address_has_queued_is_not_counted(keyed):
    fill = [{"prompt_token_ids": [9, 9 + n % 100] * 60, "completions": [[9 + n % 99] * 120]} for n in range(900)]
    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(post, keyed, TRAINER, fill)
        while keyed.metric("tvkd_queued_tokens") < 10_000:
            time.sleep(0.01)
        assert post(keyed, SMALL, [item(22, 200)]).status_code == 200
        assert filling.result().status_code == 200


def test_a_limit_counts_what_is_queued_now_and_lets_one_large_request_through():
    admission, small = Admission(1000), Asker("small", max_queued_tokens=100)
    with admission.hold(500, Asker("other")), admission.hold(60, small):
        with pytest.raises(Overloaded) as told, admission.hold(50, small):
            pass
        assert "60 tokens of this API key are queued" in str(told.value)
        with admission.hold(40, small):
            pass
    with admission.hold(500, small):
        pass
    assert not admission._queued_of


def test_a_changed_file_counts_at_once(file):
    keys = Keys(None, file)
    assert keys.client(READER) == Client("reader", read_only=True)
    assert keys.client(SMALL) == Client("small", max_queued_tokens=300)
    file.write_text(table("newcomer", "new-secret"))
    assert keys.client("new-secret") == Client("newcomer")
    assert keys.client(TRAINER) is None
    (file.parent / "next").write_text(FILE)
    (file.parent / "next").rename(file)
    assert keys.client("new-secret") is None
    assert keys.client(TRAINER) == Client("trainer")


BROKEN = {
    "not TOML": (TRAINER, "is not TOML"),
    "not text": (b"\xff\xfe", "is not TOML"),
    "the key itself": (f'[trainer]\nsha256 = "{TRAINER}"', "trainer.sha256"),
    "no digest": ("[trainer]\nread_only = true", "trainer.sha256"),
    "another field": (table("trainer", TRAINER, "readonly = true"), "trainer.readonly"),
    "a limit of nothing": (table("trainer", TRAINER, "max_queued_tokens = 0"), "trainer.max_queued_tokens"),
    "a name with dots": (table('"10.0.0.1"', TRAINER), "10.0.0.1"),
    "one key twice": (table("a", TRAINER) + table("b", TRAINER), "one key twice"),
    "nothing": ("", "no key"),
    "no file": (None, "cannot be read"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_at_the_start_and_later_changes_nothing(file, caplog, content, reason):
    keys = Keys(None, file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequest, match=reason) as told:
        Keys(None, file)
    assert str(file) in str(told.value) and TRAINER not in str(told.value)
    for _ in range(3):
        assert keys.client(TRAINER) == Client("trainer")
    (error,) = caplog.records
    assert error.levelname == "ERROR" and reason in error.message and TRAINER not in caplog.text


def test_a_server_does_not_start_on_a_broken_file(file, tiny_teacher):
    file.write_text("trainer-secret")
    flags = ["--model", tiny_teacher, "--store", file.parent / "values", "--port", "0", "--api-keys", file]
    assert "keys.toml is not TOML" in refusal_of(*flags)


def test_a_large_body_without_a_key_is_refused_before_it_is_read(keyed):
    answer = httpx.post(f"{keyed.url}/v1/potentials", content=b" " * (16 << 20), timeout=60)
    refused(answer, 401, "unauthorized")


def test_no_key_and_no_digest_is_in_the_log_or_in_an_error(keyed):
    texts = [post(keyed, key, [item(20)]).text for key in (TRAINER, READER, SINGLE, "wrong-secret")]
    texts += [post(keyed, READER, [item(23)], cache=cache).text for cache in ("use", "skip")]
    texts += [post(keyed, TRAINER, [{"nonsense": 1}]).text]
    texts += [httpx.get(f"{keyed.url}{path}").text for path in ("/metrics", "/openapi.json", "/v1/teacher")]
    shown = "".join(texts + keyed.log)
    for secret in (TRAINER, READER, SMALL, SINGLE, "wrong-secret"):
        assert secret not in shown and sha256(secret.encode()).hexdigest() not in shown
