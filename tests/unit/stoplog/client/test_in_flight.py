from __future__ import annotations

from stoplog.client.in_flight import MAX_GIVEN_UP, InFlight


def test_batch_is_taken_once() -> None:
    in_flight = InFlight()
    one, two = in_flight.new_batch(0), in_flight.new_batch(0)
    assert one.number != two.number
    assert in_flight.take(one.number) is None
    in_flight.add(one)
    assert in_flight.take(one.number) is one
    assert in_flight.take(one.number) is None
    in_flight.add(two)
    assert in_flight.drain() == [two]
    assert in_flight.take(two.number) is None


def test_batch_numbers_are_64_random_bits() -> None:
    in_flight = InFlight()
    numbers = [in_flight.new_batch(0).number for _ in range(2_000)]
    assert len(set(numbers)) == len(numbers)
    assert numbers != sorted(numbers)
    assert max(numbers) < 2**64
    for bit in range(64):
        ones = sum(number >> bit & 1 for number in numbers)
        assert 800 < ones < 1_200, bit  # 9 standard deviations


def test_batch_numbers_of_two_runs_differ() -> None:
    first, second = InFlight(), InFlight()
    assert not {first.new_batch(0).number for _ in range(600)} & {
        second.new_batch(0).number for _ in range(600)
    }


def test_batch_given_up_is_remembered_for_one_late_reply() -> None:
    in_flight = InFlight()
    batch = in_flight.new_batch(3)
    in_flight.add(batch)
    assert in_flight.give_up(batch.number) is batch
    assert in_flight.give_up(batch.number) is None
    assert in_flight.take_given_up(batch.number) == 3
    assert in_flight.take_given_up(batch.number) is None


def test_oldest_batch_given_up_is_forgotten_when_memory_is_full() -> None:
    in_flight = InFlight()
    batches = [in_flight.new_batch(0) for _ in range(MAX_GIVEN_UP + 1)]
    for batch in batches:
        in_flight.add(batch)
        in_flight.give_up(batch.number)
    assert in_flight.take_given_up(batches[0].number) is None
    assert in_flight.take_given_up(batches[1].number) == 0
