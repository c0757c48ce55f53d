"""Where a request comes from, whatever its caller puts into the header fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.identity.addresses import parse_address
from stoplog.identity.forwarding import Located, TrustedProxies, elements_from_right

PROXIES = TrustedProxies.parse("10.0.0.0/8, 2001:db8:ffff::/48")
NAMES = {"xff": b"x-forwarded-for", "forwarded": b"forwarded", "real": b"x-real-ip", "key": b"x-api-key"}


def located(trusted: TrustedProxies, peer: str | None, *fields: tuple[str, str]) -> str | None:
    headers = [(NAMES[name], value.encode("latin-1")) for name, value in fields]
    found = trusted.locate(peer, headers)
    return None if found.address is None else str(found.address)


CASES: list[tuple[str | None, list[tuple[str, str]], str | None]] = [
    # who may say anything
    ("192.0.2.9", [("xff", "203.0.113.5")], "192.0.2.9"),
    ("10.0.0.1", [("xff", "203.0.113.5")], "203.0.113.5"),
    ("::ffff:10.0.0.1", [("xff", "203.0.113.5")], "203.0.113.5"),
    ("2001:db8:ffff::1", [("forwarded", "for=203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [], "10.0.0.1"),
    ("10.0.0.1", [("key", "203.0.113.5")], "10.0.0.1"),
    (None, [("xff", "203.0.113.5")], None),
    ("testclient", [("xff", "203.0.113.5")], None),
    # from the right
    ("10.0.0.1", [("xff", "198.51.100.1, 203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [("xff", "198.51.100.1,203.0.113.5:4711,10.0.0.2")], "203.0.113.5"),
    ("10.0.0.1", [("xff", "198.51.100.1"), ("xff", "203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [("xff", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
    # an element that is no address ends the search
    ("10.0.0.1", [("xff", "203.0.113.5, unknown")], "10.0.0.1"),
    ("10.0.0.1", [("xff", "203.0.113.5, x, 10.0.0.2")], "10.0.0.2"),
    ("10.0.0.1", [("xff", "203.0.113.5,")], "10.0.0.1"),
    ("10.0.0.1", [("xff", "")], "10.0.0.1"),
    ("10.0.0.1", [("xff", "203.0.113.5, \xff")], "10.0.0.1"),
    # Forwarded
    ("10.0.0.1", [("forwarded", 'for=198.51.100.1, For="[2001:DB8::1]:4711";proto=https')], "2001:db8::1"),
    ("10.0.0.1", [("forwarded", 'by=10.0.0.1;for="203.0.113.5:80" ; host="a,b"')], "203.0.113.5"),
    ("10.0.0.1", [("forwarded", 'for="198.51.100.1'), ("forwarded", "for=203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [("forwarded", 'for=x;host="\\", for="203.0.113.5"')], "203.0.113.5"),
    ("10.0.0.1", [("forwarded", 'for=203.0.113.5;host="a\\",for=198.51.100.1;\\"b"')], "203.0.113.5"),
    ("10.0.0.1", [("forwarded", "for=203.0.113.5, proto=https")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=203.0.113.5;for=203.0.113.6")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=203.0.113.5, for=_hidden")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=203.0.113.5;" + "a" * 2_000)], "10.0.0.1"),
    # several fields
    ("10.0.0.1", [("real", "203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [("real", "203.0.113.5"), ("xff", "198.51.100.1, 203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [("xff", "203.0.113.5"), ("forwarded", "for=10.0.0.2")], "203.0.113.5"),
    ("10.0.0.1", [("real", "203.0.113.5"), ("xff", "203.0.113.6")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=203.0.113.5"), ("xff", "203.0.113.6")], "10.0.0.1"),
    ("10.0.0.1", [("xff", "10.0.0.3"), ("forwarded", "for=10.0.0.3")], "10.0.0.3"),
    ("10.0.0.1", [("xff", " "), ("real", "203.0.113.5")], "203.0.113.5"),
    # a field that cannot be read lets no other one be believed
    ("10.0.0.1", [("xff", "unknown"), ("real", "203.0.113.5")], "10.0.0.1"),
    ("10.0.0.1", [("xff", "unix:"), ("real", "203.0.113.5")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=_hidden"), ("xff", "203.0.113.5")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=unknown"), ("xff", "203.0.113.5"), ("real", "203.0.113.5")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=_hidden"), ("xff", "10.0.0.3")], "10.0.0.1"),
    ("10.0.0.1", [("forwarded", "for=_hidden"), ("xff", "x, 10.0.0.3")], "10.0.0.1"),
    ("10.0.0.1", [("xff", "10.0.0.3"), ("real", "10.0.0.2")], "10.0.0.3"),
]


@pytest.mark.parametrize(("peer", "fields", "address"), CASES)
def test_client_behind_trusted_networks_is_the_first_address_from_the_right(
    peer: str | None, fields: list[tuple[str, str]], address: str | None
) -> None:
    assert located(PROXIES, peer, *fields) == address


@pytest.mark.parametrize(
    ("hops", "peer", "value", "address"),
    [
        ("0", "192.0.2.9", "203.0.113.5", "192.0.2.9"),
        ("1", "192.0.2.9", "198.51.100.1, 203.0.113.5", "203.0.113.5"),
        ("1", None, "198.51.100.1, 203.0.113.5", "203.0.113.5"),
        ("2", "192.0.2.9", "198.51.100.1, 203.0.113.5, 192.0.2.8", "203.0.113.5"),
        ("3", "192.0.2.9", "203.0.113.5, 192.0.2.8", "203.0.113.5"),
        ("2", "192.0.2.9", "203.0.113.5, unknown, 192.0.2.8", "192.0.2.8"),
    ],
)
def test_client_behind_a_number_of_proxies_is_counted_from_the_right(
    hops: str, peer: str | None, value: str, address: str
) -> None:
    assert located(TrustedProxies.parse(hops), peer, ("xff", value)) == address


junk = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30)
junk |= st.text('0123456789.:,;=" []\\for', max_size=30)


@given(st.lists(junk, max_size=3), st.sampled_from(["xff", "forwarded"]), st.booleans())
def test_nothing_that_a_client_sends_hides_the_address_that_its_proxy_appends(
    sent: list[str], field: str, joined: bool
) -> None:
    appended = "203.0.113.5" if field == "xff" else 'for="203.0.113.5:80"'
    if joined:
        fields = [(field, ", ".join([*sent, appended]))]
    else:
        fields = [(field, value) for value in [*sent, appended]]
    assert located(PROXIES, "10.0.0.1", *fields) == "203.0.113.5"
    assert located(TrustedProxies.parse("1"), None, *fields) == "203.0.113.5"


@given(
    st.lists(st.tuples(st.sampled_from(list(NAMES)), junk), max_size=5), st.sampled_from(["192.0.2.9", "x"])
)
def test_no_field_of_an_untrusted_caller_is_read(fields: list[tuple[str, str]], peer: str) -> None:
    assert located(PROXIES, peer, *fields) == located(PROXIES, peer)


@given(st.lists(st.tuples(st.sampled_from(list(NAMES)), junk), max_size=5))
def test_other_fields_never_name_another_client_than_the_proxy_or_its_field(
    fields: list[tuple[str, str]],
) -> None:
    """Behind a proxy that sets one field, a client can at most be counted for the proxy."""
    others = [(name, value) for name, value in fields if name != "real"]
    assert located(PROXIES, "10.0.0.1", *others, ("real", "203.0.113.5")) in ("203.0.113.5", "10.0.0.1")


@pytest.mark.parametrize("other", ["203.0.113.6", "unknown"])
def test_fields_that_are_not_believed_are_kept_for_the_list_of_blocked_addresses(other: str) -> None:
    headers = [(b"x-forwarded-for", other.encode()), (b"x-real-ip", b"203.0.113.5")]
    found = PROXIES.locate("10.0.0.1", headers)
    claims = {parse_address("203.0.113.5"), parse_address(other)} - {None}
    assert found == Located(parse_address("10.0.0.1"), found.claims, certain=False)
    assert set(found.claims) == claims


@pytest.mark.parametrize(
    ("peer", "fields", "certain"),
    [
        ("192.0.2.9", [], True),
        ("192.0.2.9", [("xff", "unknown")], True),
        ("10.0.0.1", [], False),
        ("10.0.0.1", [("xff", "")], False),
        ("10.0.0.1", [("xff", "unknown")], False),
        ("10.0.0.1", [("xff", "203.0.113.5, unknown, 10.0.0.2")], False),
        ("10.0.0.1", [("xff", "203.0.113.5")], True),
        ("10.0.0.1", [("xff", "10.0.0.3")], True),
    ],
)
def test_address_is_certain_if_the_caller_or_a_list_names_it(
    peer: str, fields: list[tuple[str, str]], certain: bool
) -> None:
    headers = [(NAMES[name], value.encode()) for name, value in fields]
    found = PROXIES.locate(peer, headers)
    assert (found.certain, found.is_caller) == (certain, peer == "192.0.2.9")


@given(st.lists(st.tuples(st.sampled_from(list(NAMES)), junk), max_size=5))
def test_with_the_field_that_the_proxies_set_no_other_one_has_an_effect(
    fields: list[tuple[str, str]],
) -> None:
    for name, value in (("real", "203.0.113.5"), ("forwarded", "for=203.0.113.5"), ("xff", "203.0.113.5")):
        trusted = TrustedProxies.parse("10.0.0.0/8", NAMES[name].decode().title())
        others = [(other, text) for other, text in fields if other != name]
        assert located(trusted, "10.0.0.1", *others, (name, value)) == "203.0.113.5"
        assert located(trusted, "10.0.0.1", *others) == "10.0.0.1"


def test_field_without_addresses_of_callers_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"'X-Client' has no addresses of callers: use X-Forwarded-For"):
        TrustedProxies.parse("1", "X-Client")


@pytest.mark.parametrize(("text", "trusts"), [("", False), ("0", False), ("1", True), ("10.0.0.1", True)])
def test_proxies_are_trusted_only_if_named(text: str, trusts: bool) -> None:
    assert bool(TrustedProxies.parse(text)) == trusts


def test_too_many_proxies_are_refused() -> None:
    with pytest.raises(ValueError, match="33 proxies in a row: use 0 to 32"):
        TrustedProxies.parse("33")


def test_long_field_of_quotes_is_read_in_bounded_time() -> None:
    elements = list(elements_from_right(b"forwarded", [b'\\"' * 30_000]))
    assert elements == [""]
