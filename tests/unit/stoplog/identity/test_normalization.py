"""The normal forms of ids, for arbitrary text."""

from __future__ import annotations

import sys
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.identity.normalization import Normalization, normalizer
from stoplog.policy import check_id, digest_id

FORMS: tuple[Normalization, ...] = ("nfc", "nfc+casefold")
ids = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=60)


def form_of(form: Normalization, text: str) -> str:
    function = normalizer(form)
    assert function is not None
    return function(text)


def test_none_leaves_ids_as_they_are() -> None:
    assert normalizer("none") is None


@pytest.mark.parametrize("form", FORMS)
@given(ids)
def test_normal_form_is_a_valid_id_and_its_own_normal_form(form: Normalization, text: str) -> None:
    normal = form_of(form, text)
    assert check_id(normal, "id") == normal == form_of(form, normal)
    for spelling in (normalize("NFC", text), normalize("NFD", text)):
        if len(spelling.encode()) <= 256:
            assert form_of(form, spelling) == normal


def test_each_character_has_one_normal_form() -> None:
    for code in range(0x20, sys.maxunicode + 1):
        char = chr(code)
        if char.isprintable():
            for form in FORMS:
                normal = form_of(form, char)
                assert form_of(form, normal) == normal == form_of(form, normalize("NFD", char)), hex(code)


@pytest.mark.parametrize(
    ("form", "spellings", "distinct"),
    [
        ("nfc", ["é", "e\u0301"], 1),
        ("nfc", ["é", "É", "e\u0301"], 2),
        ("nfc+casefold", ["é", "É", "e\u0301", "E\u0301"], 1),
        ("nfc+casefold", ["STRASSE", "straße"], 1),
        ("nfc+casefold", ["alice", "Alice", "bob"], 2),
        ("nfc", ["alice", "Alice", "sha256:00", "2001:db8::/64"], 4),
    ],
)
def test_spellings_are_one_client(form: Normalization, spellings: list[str], distinct: int) -> None:
    assert len({form_of(form, one) for one in spellings}) == distinct


def test_normal_form_that_is_too_long_is_its_digest() -> None:
    text = "\u0390" * 85  # each is folded to three characters of two bytes
    folded = normalize("NFC", normalize("NFD", text).casefold())
    expected = digest_id(folded.encode()) if len(folded.encode()) > 256 else folded
    assert form_of("nfc+casefold", text) == expected
    assert form_of("nfc+casefold", "\ufb03" * 85) == "ffi" * 85
    assert form_of("nfc", "\u0958" * 85).startswith("sha256:")  # a composition exclusion: it gets longer
    assert form_of("nfc", "") == form_of("nfc+casefold", "") == ""
