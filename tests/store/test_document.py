"""A document is in one spelling, and any other byte of it is damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged

SAID = {"b": [1, 2.5, None], "a": {"text": "ψ \n", "deeper": [{}]}}
CONTENT = document.to_bytes(SAID)


def test_what_is_written_is_read():
    assert document.from_bytes(CONTENT, "it") == SAID


@given(at=st.integers(0, len(CONTENT) - 1), flipped=st.integers(1, 255))
def test_any_other_byte_is_damage(at, flipped):
    content = bytearray(CONTENT)
    content[at] ^= flipped
    with pytest.raises(Damaged, match=r"^it "):
        document.from_bytes(bytes(content), "it")


@pytest.mark.parametrize(
    "content", [b"", CONTENT[:-1], CONTENT + b" ", b"[]", b"null", b"{}", CONTENT.replace(b"\n ", b"\n  ")]
)
def test_other_spellings_and_other_things_are_damage(content):
    with pytest.raises(Damaged, match=r"^it "):
        document.from_bytes(content, "it")
