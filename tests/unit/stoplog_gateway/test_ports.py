"""Why a server cannot listen, told apart."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

import pytest
import stoplog_gateway.ports
from stoplog_gateway.ports import CannotListen, bound, claimed, ensure_free, free_port, is_free


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_a_free_port(host: str) -> None:
    ensure_free(free_port(), host)
    ensure_free(0, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_taken_port(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(CannotListen, match=f"port {port} is taken: set STOPLOG_PORT"):
            ensure_free(port, host)


@pytest.mark.parametrize("port", [65_536, 99_999])
def test_a_port_past_the_last(port: int) -> None:
    assert not is_free(port)
    with pytest.raises(CannotListen, match=rf"port {port} is past the last one, 65535: set STOPLOG_PORT"):
        ensure_free(port, "127.0.0.1")


def test_an_address_of_another_machine() -> None:
    # TEST-NET-1 (RFC 5737) is nobody's.
    with pytest.raises(CannotListen, match=r"STOPLOG_HOST=192\.0\.2\.1 is no address of this machine"):
        ensure_free(0, "192.0.2.1")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64, "not a host"])
def test_a_name_that_stands_for_nothing(host: str) -> None:
    with pytest.raises(CannotListen, match=rf"STOPLOG_HOST={host} cannot be resolved"):
        ensure_free(0, host)


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EACCES, "port 80 is reserved to root"), (errno.ENOBUFS, "port 80 of h cannot be listened on")],
)
def test_other_refusals(monkeypatch: pytest.MonkeyPatch, number: int, told: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "No")

    monkeypatch.setattr(stoplog_gateway.ports, "_bound", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", ("", 0))])
    with pytest.raises(CannotListen, match=told) as refused:
        ensure_free(80, "h")
    assert "STOPLOG_PORT" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_port_that_several_share_is_taken_for_all_others() -> None:
    port = free_port()
    with ExitStack() as stack:
        for _ in range(2):
            (sock,) = bound(port, "127.0.0.1", shared=True)
            stack.enter_context(sock).listen()
        with pytest.raises(CannotListen, match=f"port {port} is taken"):
            ensure_free(port, "127.0.0.1")


def test_a_claim_holds_against_other_claims_alone() -> None:
    port = free_port()
    with ExitStack() as stack:
        for sock in claimed(port, "127.0.0.1"):
            stack.enter_context(sock)
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(CannotListen, match=f"port {port} is taken: set STOPLOG_PORT"):
                claimed(port, host)
        for sock in claimed(free_port(), "127.0.0.1"):
            sock.close()
        for sock in bound(port, "127.0.0.1", shared=True):
            sock.close()
    for sock in claimed(port, "localhost"):
        sock.close()


def test_none_is_left_open_when_one_of_several_addresses_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen):
            bound(port, "localhost")  # an unclosed socket would be a warning, hence an error
    ensure_free(port, "localhost")
