"""Tokens and TLS of a real gateway with two processes. It has no store, so its checks fail open."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens_file import add_token, revoke_token
from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.certificates import Certificates
from tests.support.system import Process, eventually
from tests.support.up import stoplog

RELOAD_S = 5.0
PROCESSES = 2
CONNECTIONS = 16
"""So many connections that each process surely gets some."""


class Secure:
    """A running gateway with TLS, client certificates and tokens."""

    def __init__(self, folder: Path) -> None:
        self.files = Certificates(folder)
        self.tokens_file = folder / "tokens"
        self.token = add_token(self.tokens_file, "ops", frozenset({Scope.ADMIN}))
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.env = {
            "STOPLOG_PORT": str(self.port),
            "STOPLOG_HOST": "127.0.0.1",
            "STOPLOG_KAFKA": f"127.0.0.1:{free_port()}",
            "STOPLOG_STARTUP_S": "0",
            "STOPLOG_DRAIN_S": "0",
            "STOPLOG_TOKENS_FILE": str(self.tokens_file),
            "STOPLOG_CHECK_TOKEN": "required",
            "STOPLOG_TLS_CERT_FILE": str(self.files.cert_file),
            "STOPLOG_TLS_KEY_FILE": str(self.files.key_file),
            "STOPLOG_TLS_CLIENT_CA_FILE": str(self.files.ca_file),
        }
        command = [sys.executable, "-m", "stoplog_gateway", "gateway", "--processes", str(PROCESSES)]
        self.process = Process("gateway", command, env=self.env, log=folder / "gateway.log")

    @property
    def client_env(self) -> dict[str, str]:
        """The variables of the command line."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("STOPLOG_")},
            "STOPLOG_URL": self.url,
            "STOPLOG_TOKEN": self.token,
            "STOPLOG_CA_FILE": str(self.files.ca_file),
            "STOPLOG_CLIENT_CERT_FILE": str(self.files.client_cert_file),
            "STOPLOG_CLIENT_KEY_FILE": str(self.files.client_key_file),
        }

    def statuses(self, token: str, context: ssl.SSLContext) -> set[int]:
        """Return the statuses that several connections get at the same time: refused ones are delayed."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return set(pool.map(lambda _: self.get("/v1/status", context, token), range(CONNECTIONS)))

    def get(self, path: str, context: ssl.SSLContext, token: str) -> int:
        """Send a request on a new connection; return the status, and 0 without a connection."""
        headers = {"Authorization": f"Bearer {token}"}
        try:
            with httpx.Client(verify=context, trust_env=False, timeout=30) as http:
                return http.get(self.url + path, headers=headers).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    secure = Secure(tmp_path_factory.mktemp("secure"))
    secure.process.start()
    context = secure.files.client_context(with_certificate=True)
    try:
        eventually(
            "the gateway answers",
            lambda: secure.get("/readyz", context, secure.token) == 200,
            on_failure=secure.process.tail,
        )
        yield secure
    finally:
        if secure.process.status is None:
            secure.process.stop()


def test_commands_call_a_gateway_with_tls_and_tokens(secure: Secure) -> None:
    done = stoplog("check", "alice", "--json", env=secure.client_env)
    assert (done.returncode, '"degraded": true' in done.stdout) == (0, True), done.stderr
    done = stoplog("status", env=secure.client_env)
    assert done.returncode == 0, done.stderr
    without = {"STOPLOG_TOKEN": 1, "STOPLOG_CA_FILE": 3, "STOPLOG_CLIENT_CERT_FILE": 3}
    for name, status in without.items():
        env = {key: value for key, value in secure.client_env.items() if key != name}
        done = stoplog("status", env=env)
        assert done.returncode == status, (name, done.stderr)
        assert secure.token not in done.stdout + done.stderr
    env = {key: value for key, value in secure.client_env.items() if not key.endswith("_FILE")}
    options = ["--cacert", secure.files.ca_file, "--cert", secure.files.client_cert_file]
    options += ["--key", secure.files.client_key_file]
    done = stoplog("status", *map(str, options), env=env)
    assert done.returncode == 0, done.stderr


def test_bench_measures_a_gateway_with_tls_and_tokens(secure: Secure) -> None:
    done = stoplog("bench", "--quick", "--callers", "2", "--json", env=secure.client_env)
    assert done.returncode == 0, done.stderr
    assert '"degraded": 0,' not in done.stdout


def test_health_check_of_the_image_follows_the_tls_settings(secure: Secure) -> None:
    script = [
        sys.executable,
        str(CHECKOUT / "docker" / "healthy.py"),
        f"http://127.0.0.1:{secure.port}/readyz",
    ]
    env = {**secure.env, **secure.client_env}
    assert subprocess.run(script, env=env, timeout=60, check=False).returncode == 0
    del env["STOPLOG_CLIENT_CERT_FILE"]
    assert subprocess.run(script, env=env, timeout=60, check=False).returncode == 1


def test_secrets_are_in_no_log_and_no_command_line(secure: Secure) -> None:
    secure.get("/v1/status", secure.files.client_context(with_certificate=True), "stoplog_wrong")
    log = secure.process.log.read_text()
    assert "carry an unknown token" in log
    assert "stoplog_wrong" not in log
    assert secure.token not in log
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secure.token.encode() not in process.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_new_tokens_and_certificates_count_in_every_process_within_five_seconds(secure: Secure) -> None:
    context = secure.files.client_context(with_certificate=True)
    added = add_token(secure.tokens_file, "added", frozenset({Scope.READ}))

    def within(expected: set[int], token: str, context: ssl.SSLContext) -> None:
        time.sleep(RELOAD_S)
        assert secure.statuses(token, context) == expected

    within({200}, added, context)
    revoke_token(secure.tokens_file, "added")
    within({401}, added, context)
    secure.files.renew()
    renewed = secure.files.client_context(with_certificate=True)
    within({200}, secure.token, renewed)
    assert secure.statuses(secure.token, context) == {0}


def test_unusable_files_keep_the_old_ones_with_one_error_in_each_process(secure: Secure) -> None:
    context = secure.files.client_context(with_certificate=True)
    secure.tokens_file.write_text("ops admin nonsense\n")
    secure.files.key_file.write_bytes(b"nonsense")

    def errors() -> list[str]:
        return re.findall(r"^.* ERROR .*$", secure.process.log.read_text(), re.MULTILINE)

    eventually(
        "each process complains about both",
        lambda: len(errors()) == 2 * PROCESSES,
        on_failure=lambda: str(errors()),
    )
    time.sleep(RELOAD_S)
    assert len(errors()) == 2 * PROCESSES
    assert sum(f"{secure.tokens_file}, line 1: " in line for line in errors()) == PROCESSES
    assert sum(str(secure.files.key_file) in line for line in errors()) == PROCESSES
    assert secure.statuses(secure.token, context) == {200}
    with httpx.Client(verify=context, trust_env=False, timeout=30) as http:
        page: Any = http.get(f"{secure.url}/metrics").text
    assert re.search(r'stoplog_files_stale{[^}]*what="tokens"[^}]*} 1.0', page)
    assert re.search(r'stoplog_files_stale{[^}]*what="tls"[^}]*} 1.0', page)


def test_gateway_with_tls_stops_at_once_and_without_errors(secure: Secure) -> None:
    before = secure.process.log.read_text().count(" ERROR ")
    began = time.monotonic()
    secure.process.signal(signal.SIGTERM)
    secure.process.join(60)
    assert secure.process.status == 0
    assert time.monotonic() - began < 30
    assert secure.process.log.read_text().count(" ERROR ") == before
