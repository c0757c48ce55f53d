"""A broker with the listeners and the authorizer that companies use, and the files that its clients need."""

from __future__ import annotations

import re
import shlex
import threading
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from stoplog_gateway.ports import free_port

from tests.support.broker import QuickBroker, home_with_jars, make_topics
from tests.support.token_endpoint import TokenEndpoint

LISTENERS: Final = ("tls", "mtls", "scram", "plain", "oauth", "expired")
"""Listeners besides the one for the tests themselves, on which everything is allowed."""

PASSWORD: Final = "correct horse battery staple"

SCRAM: Final = {
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
}
"""The mechanisms of the listener ``scram``."""


class SecureBroker(QuickBroker):
    """A broker whose listeners need TLS and credentials, and whose authorizer allows only what ACLs allow.

    Clients of ``bootstrap`` are super users, so that a test can prepare and look.
    """

    def __init__(self, *args: Any, files: Path, reauth_ms: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files = files
        self.reauth_ms = reauth_ms
        self.ports = {name: free_port() for name in LISTENERS}

    def address(self, listener: str) -> str:
        """Return the bootstrap server of *listener*."""
        return f"127.0.0.1:{self.ports[listener]}"

    def _java(self, jars: Path) -> list[str]:
        java, *options = super()._java(jars)
        allowed = (self.files / "jwks.json").as_uri()
        return [java, f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={allowed}", *options]

    def _write_properties(self) -> Path:
        path = super()._write_properties()
        lines = dict(
            line.split("=", 1) for line in path.read_text().splitlines() if "=" in line and line[0] != "#"
        )
        own = ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in self.ports.items())
        lines["listeners"] += f",{own}"
        lines["advertised.listeners"] += f",{own}"
        protocols = {name: "SASL_SSL" if name in ("scram", "plain", "oauth") else "SSL" for name in LISTENERS}
        lines["listener.security.protocol.map"] += "".join(f",{n.upper()}:{p}" for n, p in protocols.items())
        lines["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        lines["super.users"] = "User:ANONYMOUS"
        lines["ssl.principal.mapping.rules"] = "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT"
        lines["ssl.keystore.type"] = lines["ssl.truststore.type"] = "PEM"
        lines["ssl.keystore.location"] = str(self.files / "broker.pem")
        lines["ssl.truststore.location"] = str(self.files / "ca.pem")
        # An anonymous client of a listener would be a super user.
        lines["listener.name.mtls.ssl.client.auth"] = "required"
        # A file of its own, which a test may replace.
        lines["listener.name.mtls.ssl.keystore.location"] = str(self.files / "broker-mtls.pem")
        lines["listener.name.expired.ssl.keystore.location"] = str(self.files / "expired.pem")
        module = "org.apache.kafka.common.security"
        for name, mechanism, jaas in (
            *(("scram", name, f"{module}.scram.ScramLoginModule required;") for name in SCRAM),
            (
                "plain",
                "PLAIN",
                f'{module}.plain.PlainLoginModule required user_stoplog-sdk="{PASSWORD}";',
            ),
            ("oauth", "OAUTHBEARER", f"{module}.oauthbearer.OAuthBearerLoginModule required;"),
        ):
            prefix = f"listener.name.{name}"
            lines[f"{prefix}.sasl.enabled.mechanisms"] = ",".join(SCRAM) if name == "scram" else mechanism
            lines[f"{prefix}.{mechanism.lower()}.sasl.jaas.config"] = jaas
        oauth = "listener.name.oauth.oauthbearer"
        lines[f"{oauth}.sasl.server.callback.handler.class"] = (
            f"{module}.oauthbearer.OAuthBearerValidatorCallbackHandler"
        )
        lines["listener.name.oauth.sasl.oauthbearer.jwks.endpoint.url"] = (self.files / "jwks.json").as_uri()
        lines["listener.name.oauth.sasl.oauthbearer.expected.audience"] = "kafka"
        if self.reauth_ms:
            lines[f"{oauth}.connections.max.reauth.ms"] = str(self.reauth_ms)
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return path


@dataclass
class SecureKafka:
    """A running :class:`SecureBroker`, its token endpoint, and the files that its clients need.

    Attributes:
        broker: The broker.
        files: Folder of the files.
        endpoint: Issues tokens.
        authority: Signed the certificates of the broker, of clients and of the endpoint.
    """

    broker: SecureBroker
    files: Path
    endpoint: TokenEndpoint
    authority: trustme.CA = field(repr=False)

    def scram(self, user: str, password: str = PASSWORD, mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
        """Return the settings of a client that authenticates as *user* by SCRAM over TLS."""
        return {
            "kafka": self.broker.address("scram"),
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ca_file": str(self.files / "ca.pem"),
            "kafka_sasl_mechanism": mechanism,
            "kafka_username": user,
            "kafka_password_file": str(self.secret_file(password)),
        }

    def plain(self, user: str, password: str = PASSWORD) -> dict[str, Any]:
        """Return the settings of a client that authenticates as *user* by PLAIN over TLS."""
        return {
            **self.scram(user, password),
            "kafka": self.broker.address("plain"),
            "kafka_sasl_mechanism": "PLAIN",
        }

    def mtls(self, user: str, *, expired: bool = False) -> dict[str, Any]:
        """Return the settings of a client whose certificate names *user*."""
        chain = self.files / f"{user}{'-expired' if expired else ''}.pem"
        if not chain.exists():
            write_certificate(self.authority, chain, f"{user}.test", common_name=user, expired=expired)
        return {
            "kafka": self.broker.address("mtls"),
            "kafka_security_protocol": "SSL",
            "kafka_ca_file": str(self.files / "ca.pem"),
            "kafka_cert_file": str(chain),
            "kafka_key_file": str(chain),
        }

    def oauth(self, user: str, secret: str = PASSWORD) -> dict[str, Any]:
        """Return the settings of a client that authenticates as *user* with tokens."""
        return {
            "kafka": self.broker.address("oauth"),
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ca_file": str(self.files / "ca.pem"),
            "kafka_sasl_mechanism": "OAUTHBEARER",
            "kafka_oauth_token_url": self.endpoint.url,
            "kafka_oauth_client_id": user,
            "kafka_oauth_client_secret_file": str(self.secret_file(secret)),
            "kafka_oauth_scope": "kafka",
            "kafka_oauth_ca_file": str(self.files / "ca.pem"),
        }

    def tls(self, listener: str = "tls") -> dict[str, Any]:
        """Return the settings of a client that encrypts, and has no credentials."""
        return {
            "kafka": self.broker.address(listener),
            "kafka_security_protocol": "SSL",
            "kafka_ca_file": str(self.files / "ca.pem"),
        }

    def secret_file(self, secret: str) -> Path:
        """Return a file that contains *secret*."""
        path = self.files / f"secret-{abs(hash(secret))}"
        if not path.exists():
            new = self.files / f"new-{threading.get_ident()}"
            new.write_text(f"{secret}\n")
            new.rename(path)  # another thread may read it
        return path

    def set_password(self, users: Sequence[str], password: str) -> None:
        """Give *users* a password for SCRAM. Open connections stay."""
        admin = self.admin()
        for mechanism in SCRAM.values():  # one request may name a user once
            updates: list[UserScramCredentialAlteration] = [
                UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4_096), password.encode())
                for user in users
            ]
            for future in admin.alter_user_scram_credentials(updates).values():
                future.result(30)

    def grant(self, commands: str) -> None:
        """Do what *commands* for Kafka's ``kafka-acls.sh`` would do."""
        parser = ArgumentParser()
        for name in ("--allow-principal", "--bootstrap-server", "--command-config"):
            parser.add_argument(name)
        parser.add_argument("--add", action="store_true")
        for name in ("--operation", "--topic", "--group"):
            parser.add_argument(name, action="append", default=[])
        bindings = []
        for command in commands.splitlines():
            program, *arguments = shlex.split(command)
            assert program == "kafka-acls.sh"
            it = parser.parse_args(arguments)
            for kind, names in ((ResourceType.TOPIC, it.topic), (ResourceType.GROUP, it.group)):
                bindings += [
                    AclBinding(
                        kind,
                        name,
                        ResourcePatternType.LITERAL,
                        it.allow_principal,
                        "*",
                        AclOperation[re.sub(r"(?<!^)(?=[A-Z])", "_", operation).upper()],
                        AclPermissionType.ALLOW,
                    )
                    for name in names
                    for operation in it.operation
                ]
        admin = self.admin()
        for future in admin.create_acls(bindings).values():
            future.result(30)

    def admin(self) -> AdminClient:
        """Return a client that may do everything."""
        return AdminClient({"bootstrap.servers": self.broker.bootstrap, "log_level": 0})


def write_certificate(
    authority: trustme.CA, path: Path, *names: str, common_name: str | None = None, expired: bool = False
) -> None:
    """Write a private key and a certificate that *authority* signs into *path*, as Kafka reads them."""
    ends = datetime.now(UTC) - timedelta(days=1) if expired else None
    issued = authority.issue_cert(*names, common_name=common_name, not_after=ends)
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + b"".join(it.bytes() for it in issued.cert_chain_pems))


@contextmanager
def secure_kafka(*users: str, topics: bool = True, reauth_ms: int = 0) -> Iterator[SecureKafka]:
    """Run a secure broker. *users* have :data:`PASSWORD`, for SCRAM and at the token endpoint.

    Args:
        users: Names of principals.
        topics: Create the topics of topics.yaml.
        reauth_ms: Longest session of a client with a token, in ms; 0: without end.
    """
    with ExitStack() as stack:
        files = Path(stack.enter_context(TemporaryDirectory(prefix="stoplog-test-")))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(files / "ca.pem"))
        write_certificate(authority, files / "broker.pem", "127.0.0.1")
        write_certificate(authority, files / "broker-mtls.pem", "127.0.0.1")
        write_certificate(authority, files / "expired.pem", "127.0.0.1", expired=True)
        endpoint = TokenEndpoint(dict.fromkeys(users, PASSWORD), files / "broker.pem")
        stack.callback(endpoint.close)
        (files / "jwks.json").write_text(endpoint.jwks())
        broker = SecureBroker(
            home_with_jars(files / "home"), port=free_port(), files=files, reauth_ms=reauth_ms
        )
        stack.callback(broker.kill)
        broker.start()
        kafka = SecureKafka(broker, files, endpoint, authority)
        if users:
            kafka.set_password(users, PASSWORD)
        if topics:
            make_topics(broker.bootstrap)
        yield kafka
