"""The form in which ids are compared.

Ids are compared byte by byte. ``é`` can be one character or two, and names may differ in case only. All nodes
can replace each id by a normal form, so that such spellings are one client. Nodes with different forms would
count one client twice, so they refuse to run beside each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal
from unicodedata import normalize

from stoplog.policy import usable_id

Normalization = Literal["none", "nfc", "nfc+casefold"]

NONE: Final = "none"


def normalizer(form: Normalization) -> Callable[[str], str] | None:
    r"""Return the function that replaces an id by its normal form; ``None`` if ids stay as they are.

    A normal form that is too long is replaced by its digest. The empty text stays empty.

    >>> normalizer("nfc")("e\u0301lise") == "élise", normalizer("nfc+casefold")("ÉLISE")
    (True, 'élise')
    """
    if form == NONE:
        return None
    return _nfc if form == "nfc" else _nfc_casefold


@lru_cache(4_096)
def _nfc(value: str) -> str:
    return _usable(value, normalize("NFC", value))


@lru_cache(4_096)
def _nfc_casefold(value: str) -> str:
    if value.isascii():
        return value.lower()
    # Unicode 3.13, D145: a canonical caseless match decomposes before it folds.
    return _usable(value, normalize("NFC", normalize("NFD", value).casefold()))


def _usable(value: str, normal: str) -> str:
    return value if normal == value else usable_id(normal)
