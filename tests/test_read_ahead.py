"""Reading ahead: bounded, in order, errors in their place."""

import threading

import pytest
from dpmrecon.read_ahead import ReadAhead

from support.waiting import until


def test_slices_are_read_ahead_but_not_all():
    taken = []

    def stream():
        for number in range(100):
            taken.append(number)
            yield number

    reader = ReadAhead(stream(), 2)
    until(lambda: len(taken) == 3)  # two wait, one is in hand
    groups = reader.groups()
    assert next(groups) == [0, 1]
    until(lambda: len(taken) == 5)
    reader.close()
    assert len(taken) == 100  # dropped, so that the peer can say all


def test_an_error_of_the_reader_comes_after_its_slices():
    def stream():
        yield 1
        raise ArithmeticError("two")

    groups = ReadAhead(stream(), 4).groups()
    assert next(groups) == [1]
    with pytest.raises(ArithmeticError, match="two"):
        next(groups)


def test_it_is_the_stream():
    assert list(ReadAhead(iter(range(50)), 3)) == list(range(50))


def test_no_more_is_read_than_fits():
    """Two wait, two are in the hand of who takes them, one is on its way."""
    most, taken = 0, 0
    stepped = threading.Event()

    def stream():
        nonlocal most, taken
        for number in range(20):
            most = max(most, number - taken)
            stepped.set()
            yield number

    for number in ReadAhead(stream(), 2):
        taken = number + 1
    assert stepped.is_set() and most <= 5
