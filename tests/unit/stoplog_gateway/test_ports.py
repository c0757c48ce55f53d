"""Binding, claiming and finding ports, and the error text of each failure."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import stoplog_gateway.ports
from stoplog_gateway.ports import CannotListen, bind_port, claim_port, ensure_free, free_port, is_free, listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_ensure_free_accepts_a_free_port(host: str) -> None:
    ensure_free(free_port(), host)
    ensure_free(0, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_ensure_free_names_the_remedy_for_a_taken_port(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(CannotListen, match=f"port {port} is taken: set STOPLOG_PORT"):
            ensure_free(port, host)


@pytest.mark.parametrize("port", [65_536, 99_999])
def test_ensure_free_refuses_a_port_above_the_highest(port: int) -> None:
    assert not is_free(port)
    with pytest.raises(
        CannotListen, match=rf"port {port} is above the highest port, 65535: set STOPLOG_PORT"
    ):
        ensure_free(port, "127.0.0.1")


def test_ensure_free_refuses_an_address_of_another_machine() -> None:
    # No machine has an address of TEST-NET-1 (RFC 5737).
    with pytest.raises(CannotListen, match=r"STOPLOG_HOST=192\.0\.2\.1 is not an address of this machine"):
        ensure_free(0, "192.0.2.1")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64, "not a host"])
def test_ensure_free_refuses_a_host_that_cannot_be_resolved(host: str) -> None:
    with pytest.raises(CannotListen, match=rf"STOPLOG_HOST={host} cannot be resolved"):
        ensure_free(0, host)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EACCES, "port 80 is reserved for root"), (errno.ENOBUFS, "cannot listen on port 80 of h")],
)
def test_ensure_free_explains_other_errors(
    monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "No")

    monkeypatch.setattr(stoplog_gateway.ports, "_bind", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", ("", 0))])
    with pytest.raises(CannotListen, match=message) as refused:
        ensure_free(80, "h")
    assert "STOPLOG_PORT" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_shared_port_is_taken_for_a_server_that_does_not_share() -> None:
    port = free_port()
    with ExitStack() as stack:
        for _ in range(2):
            (sock,) = bind_port(port, "127.0.0.1", shared=True)
            stack.enter_context(sock).listen()
        with pytest.raises(CannotListen, match=f"port {port} is taken"):
            ensure_free(port, "127.0.0.1")


def test_claim_blocks_other_claims_but_not_binding() -> None:
    port = free_port()
    with ExitStack() as stack:
        for sock in claim_port(port, "127.0.0.1", "gateway"):
            stack.enter_context(sock)
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(CannotListen, match=f"port {port} is taken: set STOPLOG_PORT"):
                claim_port(port, host, "gateway")
        for sock in claim_port(free_port(), "127.0.0.1", "gateway"):
            sock.close()
        for sock in bind_port(port, "127.0.0.1", shared=True):
            sock.close()
        for sock in claim_port(port, "127.0.0.1", "up"):
            sock.close()
    for sock in claim_port(port, "localhost", "gateway"):
        sock.close()


def test_bind_port_closes_its_sockets_when_one_address_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen):
            bind_port(
                port, "localhost"
            )  # pytest fails if a socket stays open: it turns ResourceWarning into an error
    ensure_free(port, "localhost")


def test_address_of_all_ipv6_addresses_serves_ipv4_too() -> None:
    port = free_port()
    for shared in (False, True):
        [sock] = bind_port(port, "::", shared=shared)
        with sock:
            sock.listen()
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, port), 10).close()


@pytest.mark.skipif(sys.platform != "linux", reason="claims need abstract sockets")
def test_claim_of_all_ipv6_addresses_includes_ipv4() -> None:
    port = free_port()
    with ExitStack() as stack:
        for sock in claim_port(port, "::", "gateway"):
            stack.enter_context(sock)
        with pytest.raises(CannotListen):
            claim_port(port, "0.0.0.0", "gateway")


HOLDER = """
import stoplog_gateway.ports as ports
ports._FREE_PORTS = ({first}, {first} + 40)  # so few that two processes would choose the same
print(*(ports.free_port() for _ in range(8)), flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing holds the port")
def test_free_port_is_held_against_other_processes_and_not_against_children() -> None:
    program = HOLDER.format(first=free_port() & ~63)
    with ExitStack() as stack:
        holders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        chosen = [
            int(port) for holder in holders if holder.stdout for port in holder.stdout.readline().split()
        ]
        assert len(chosen) == len(set(chosen)) == 32
        for port in chosen:
            with socket.create_server(("127.0.0.1", port)):  # as a child of the holder does
                assert not is_free(port)


def test_listen_on_a_taken_port_names_the_setting() -> None:
    with listen(0, "127.0.0.1", "STOPLOG_METRICS_") as first:
        port = first.getsockname()[1]
        with pytest.raises(
            CannotListen, match=f"port {port} is taken: set STOPLOG_METRICS_PORT to a free one"
        ):
            listen(port, "127.0.0.1", "STOPLOG_METRICS_")
    listen(port, "127.0.0.1", "STOPLOG_METRICS_").close()


def test_listen_of_two_that_have_bound_a_port_gives_it_to_one() -> None:
    port = free_port()
    (bound,) = bind_port(port, "127.0.0.1")
    with bound, listen(port, "127.0.0.1", "STOPLOG_METRICS_"), pytest.raises(OSError, match="in use"):
        bound.listen()
