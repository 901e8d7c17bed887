"""`POST /v1/shaping`: a pair's numbers are those of the NumPy reference, and it goes the way of every request."""

from dataclasses import fields
from itertools import product
from typing import get_args

import httpx
import numpy as np
import pytest

from tvkd_shared.objective import starting_weight, tvkd_loss
from tvkd_shared.shaping import Aggregate, Form, Shaping, Terminal, aggregate, shaping

PAIR = {"prompt": "w9 w10 ", "chosen": "w11 w12 <eos>", "rejected": "w13 w14 w15 w16"}
EOS = 2


def post(server, path="shaping", **body):
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


@pytest.fixture(scope="module")
def sides(server):
    """V_1, V_2, H and q of both completions, by `POST /v1/potentials` of the token ids."""
    completions = [[11, 12, EOS], [13, 14, 15, 16]]
    item = {"prompt_token_ids": [9, 10], "completions": completions}
    answer = post(server, "potentials", items=[item], temperatures=[1.0, 2.0], entropy=True).json()
    names = {"V1": lambda side: side["values"][0], "V2": lambda side: side["values"][1]}
    names |= {"H": lambda side: side["entropies"], "q": lambda side: side["action_logits"]}
    found = [{n: np.array(of(side)) for n, of in names.items()} for side in answer["items"][0]["completions"]]
    return [
        side | {"end": ids.index(EOS) + 1 if EOS in ids else None} for side, ids in zip(found, completions, strict=True)
    ]


POTENTIALS = {
    ("soft-value", 1.0): lambda side: side["V1"],
    ("soft-value", 2.0): lambda side: side["V2"],
    ("renyi", 2.0): lambda side: side["V2"] - side["V1"],
    ("entropy", 1.0): lambda side: side["H"],
}


@pytest.mark.parametrize(("potential", "temperature"), POTENTIALS)
def test_every_reading_is_that_of_the_reference(server, sides, potential, temperature):
    phi = [POTENTIALS[potential, temperature](side) for side in sides]
    choices = product((1.0, 0.9), *map(get_args, (Terminal, Aggregate, Form)))
    for gamma, terminal, how, form in choices:
        reading = {"potential": potential, "temperature": temperature, "gamma": gamma, "terminal": terminal}
        answer = post(server, **PAIR, shaping=reading | {"aggregate": how, "form": form}, alpha=-0.5).json()
        S = []
        for name, phi_S, side in zip(("chosen", "rejected"), phi, sides, strict=True):
            psi = shaping(phi_S, gamma=gamma, terminal=terminal, end=side["end"], form=form)
            S.append(aggregate(psi, how))
            assert answer[name]["psi"] == pytest.approx(psi.tolist(), abs=1e-9)
            assert answer[name]["shaping"] == pytest.approx(S[-1], abs=1e-9)
            assert answer[name]["log_probs"] == pytest.approx((side["q"] - side["V1"][:-1]).tolist(), abs=1e-6)
            assert answer[name]["entropies"] == side["H"].tolist()
        assert answer["margin"] == pytest.approx(S[0] - S[1], abs=1e-9)
        assert answer["weight"] == pytest.approx(1 / (1 + np.exp(-0.5 * answer["margin"])), abs=1e-9)


def test_the_weight_is_that_of_the_loss_gradient():
    for alpha, margin in product((-2.0, 0.0, 0.3), (-4.0, 0.1, 5.0)):
        step = 1e-6
        slope = (tvkd_loss(1, step, alpha, margin) - tvkd_loss(1, -step, alpha, margin)) / (2 * step)
        assert starting_weight(alpha, margin) == pytest.approx(-slope, abs=1e-8)
    assert starting_weight(1e308, np.array([-9.0, 0.0, 9.0])) == pytest.approx([1, 0.5, 0])


def test_without_choices_it_is_the_papers_reading(server):
    given = {choice.name: choice.default for choice in fields(Shaping)}
    assert post(server, **PAIR).json() | {"cached": 0} == post(server, **PAIR, shaping=given, alpha=1.0).json() | {
        "cached": 0
    }


def test_words_are_the_texts_own_characters_and_the_template_ends_them(server):
    answer = post(server, **PAIR | {"prompt": [{"role": "user", "content": "w9"}], "chosen": "w11  w12"}).json()
    assert "".join(answer["chosen"]["words"]).startswith("w11  w12")
    assert len(answer["chosen"]["words"]) == answer["chosen"]["length"] == len(answer["chosen"]["tokens"])
    assert answer["chosen"]["words"][-2:] == ["<eos>", "\n"]


def test_a_pair_goes_through_the_store(server):
    pair = PAIR | {"chosen": "w70 w71", "rejected": "w72"}
    assert [post(server, **pair).json()["chosen"]["cached"] for _ in range(2)] == [False, True]
    before = server.metric("tvkd_computed_completions_total")
    assert post(server, **pair, shaping={"gamma": 0.5}).json()["rejected"]["cached"]
    assert server.metric("tvkd_computed_completions_total") == before


REFUSED = {
    "an unknown choice": ({"shaping": {"potential": "value"}}, "shaping.potential: "),
    "a γ out of range": ({"shaping": {"gamma": 2}}, "gamma 2.0 is not in 0 … 1"),
    "a number as text": ({"alpha": "1"}, "alpha: "),
    "two models": ({"shaping": {"potential": "implicit"}}, "tvkd show --teacher-reference"),
    "a τ that is not served": ({"shaping": {"temperature": 11}}, "temperature is 11.0; served are 0.1 … 10.0"),
    "an empty answer": ({"rejected": ""}, "rejected: "),
    "a blank answer": ({"rejected": " "}, "rejected is no token long"),
    "too long": ({"chosen": "w9 " * 300}, "the prompt and chosen are 2 + 300"),
    "no pair": ({"completions": []}, "completions: "),
}


@pytest.mark.parametrize(("change", "line"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_line_in_the_words_of_the_request(server, change, line):
    answer = post(server, **PAIR | change)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    detail = answer.json()["detail"]
    assert line in detail and "\n" not in detail and "items[" not in detail


def test_a_pair_is_json(server):
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    answer = httpx.post(f"{server.url}/v1/shaping", content=b"", headers=headers)
    assert answer.status_code == 422 and "a pair is text" in answer.json()["detail"]
