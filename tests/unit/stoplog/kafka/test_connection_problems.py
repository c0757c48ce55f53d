from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from stoplog.kafka.connection_problems import ConnectionProblems

TIMED_OUT = KafkaError(KafkaError._TIMED_OUT)
WHERE = "sasl_ssl://kafka:9092/bootstrap: "
STATE = " (after 5ms in state AUTH_REQ)"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def problems(mechanism: str | None = None, found: str | None = None) -> ConnectionProblems:
    return ConnectionProblems(mechanism, lambda: found)


@pytest.mark.parametrize(
    ("mechanism", "error", "text"),
    [
        (
            "SCRAM-SHA-512",
            "SASL authentication error: Authentication failed",
            r"^the broker refused the credentials \(SASL authentication error: Authentication failed\): "
            r"correct STOPLOG_KAFKA_USERNAME and STOPLOG_KAFKA_PASSWORD_FILE",
        ),
        (
            "PLAIN",
            "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported "
            "mechanisms: SCRAM-SHA-512",
            r"STOPLOG_KAFKA_SASL_MECHANISM=PLAIN: set one that it accepts \(SCRAM-SHA-512\)",
        ),
        ("OAUTHBEARER", '{"status":"invalid_token"}', r"refused the token .*OAUTH_TOKEN_URL"),
        ("OAUTHBEARER", "no token for Kafka: it is down", r"^no token for Kafka: it is down$"),
    ],
)
def test_refused_credentials_explain_the_request_that_timed_out(
    mechanism: str, error: str, text: str
) -> None:
    found = problems(mechanism, "a guess of the probe")
    found.record(KafkaError(KafkaError._AUTHENTICATION, f"{WHERE}{error}{STATE}"))
    found.record(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(found.explain(TIMED_OUT))


@pytest.mark.parametrize(
    "error",
    [
        "SASL OAUTHBEARER mechanism handshake failed: Broker: Request not valid in current SASL state: "
        "broker's supported mechanisms: ",
        "SASL OAUTHBEARER mechanism handshake failed: Local: Broker transport failure: broker's supported "
        "mechanisms: (n/a)",
    ],
)
def test_closed_handshake_is_no_proof_of_a_listener_without_sasl(error: str) -> None:
    failed = KafkaError(KafkaError._AUTHENTICATION, f"{WHERE}{error} (after 20ms in state AUTH_HANDSHAKE)")
    busy = problems("OAUTHBEARER")
    busy.record(failed)
    assert busy.known() is None
    assert busy.explain(TIMED_OUT).endswith(": check that the broker at STOPLOG_KAFKA runs")
    proven = problems("OAUTHBEARER", "the listener does not use SASL")
    proven.record(failed)
    assert proven.explain(TIMED_OUT) == "the listener does not use SASL"


def test_refused_certificate_names_its_settings() -> None:
    found = problems()
    found.record(KafkaError(KafkaError._TRANSPORT, "SSL routines::tlsv13 alert certificate required: 116"))
    assert "set STOPLOG_KAFKA_CERT_FILE and STOPLOG_KAFKA_KEY_FILE" in found.explain(TIMED_OUT)


def test_report_of_the_past_explains_nothing() -> None:
    clock = Clock()
    found = ConnectionProblems("PLAIN", lambda: "the probe's cause", clock)
    found.record(KafkaError(KafkaError._AUTHENTICATION, "wrong"))
    clock.now = 31.0
    assert found.known() is None
    assert found.explain(TIMED_OUT) == found.known() == "the probe's cause"


def test_probe_is_made_once_in_five_seconds() -> None:
    clock, probes = Clock(), iter(["one", "two"])
    found = ConnectionProblems(None, lambda: next(probes), clock)
    assert [found.explain(TIMED_OUT) for _ in range(3)] == ["one"] * 3
    clock.now = 5.1
    assert found.explain(TIMED_OUT) == "two"


def test_failure_without_a_cause_suggests_to_look_at_the_broker() -> None:
    assert problems().explain(TIMED_OUT).endswith(": check that the broker at STOPLOG_KAFKA runs")


def test_missing_right_names_the_command_that_prints_the_rights() -> None:
    text = problems("PLAIN", "a probe").explain(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert text.endswith("grant what `stoplog topics acls` prints for the role of this process")
