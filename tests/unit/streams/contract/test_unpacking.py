from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError, KafkaException

from streams.contract.unpacking import Steps


class Consumer:
    def __init__(self) -> None:
        self.sought: list[tuple[str, int, int]] = []
        self.assigned = True

    def seek(self, place: Any) -> None:
        if not self.assigned:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.sought.append((place.topic, place.partition, place.offset))


class Message:
    def __init__(self, code: int, offset: int, partition: int = 0) -> None:
        self._facts = (KafkaError(code), offset, partition)

    def error(self) -> KafkaError:
        return self._facts[0]

    def topic(self) -> str:
        return "checks"

    def partition(self) -> int:
        return self._facts[2]

    def offset(self) -> int:
        return self._facts[1]


BAD = KafkaError._BAD_COMPRESSION


def test_one_step_however_often_it_was_told() -> None:
    consumer = Consumer()
    steps = Steps(consumer)  # type: ignore[arg-type]
    assert steps.note(Message(BAD, 7))
    assert steps.note(Message(BAD, 7))
    steps.take()
    steps.take()
    assert consumer.sought == [("checks", 0, 8)]


def test_to_the_end_of_a_batch_of_several() -> None:
    consumer = Consumer()
    steps = Steps(consumer)  # type: ignore[arg-type]
    for offset in (7, 7, 7, 20, 20):
        steps.note(Message(BAD, offset))
        steps.take()
    assert [offset for _, _, offset in consumer.sought] == [8, 9, 10, 21, 22]


def test_begun_anew_once_left() -> None:
    consumer = Consumer()
    steps = Steps(consumer)  # type: ignore[arg-type]
    for _ in range(3):
        steps.note(Message(BAD, 7))
        steps.take()
    steps.note(Message(BAD, 7))
    steps.forget("checks", 0)
    steps.take()
    steps.note(Message(BAD, 7))
    steps.take()
    assert [offset for _, _, offset in consumer.sought] == [8, 9, 10, 8]


def test_other_errors_are_none_of_it() -> None:
    consumer = Consumer()
    steps = Steps(consumer)  # type: ignore[arg-type]
    assert not steps.note(Message(KafkaError._PARTITION_EOF, 7))
    steps.take()
    assert consumer.sought == []


def test_a_partition_that_is_no_longer_assigned() -> None:
    consumer = Consumer()
    consumer.assigned = False
    steps = Steps(consumer)  # type: ignore[arg-type]
    steps.note(Message(BAD, 7))
    steps.take()
