"""A turn has one holder, and goes on in the order in which it was asked for."""

from __future__ import annotations

import threading
from time import sleep

import pytest

from ortserve.runtime.host.turn import Turn
from tests.waiting import PATIENCE_S, wait_for


def wait_for_queue(turn: Turn, length: int) -> None:
    wait_for(lambda: len(turn._waiting) >= length)


def test_those_that_wait_go_in_their_order_and_before_whoever_has_just_been() -> None:
    turn, order = Turn(), list[int]()
    threads = []

    def visit(number: int) -> None:
        with turn:
            order.append(number)

    with turn:
        for number in range(5):
            threads.append(threading.Thread(target=visit, args=(number,)))
            threads[-1].start()
            wait_for_queue(turn, number + 1)
    visit(99)  # asks at once: after those that were there
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == [0, 1, 2, 3, 4, 99]


def test_there_is_never_more_than_one_holder() -> None:
    turn, inside, most = Turn(), 0, 0

    def visit() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turn:
                inside += 1
                most = max(most, inside)
                sleep(0)
                inside -= 1

    threads = [threading.Thread(target=visit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert most == 1
    assert not turn._waiting


def test_an_exception_hands_it_on() -> None:
    turn = Turn()
    with pytest.raises(ValueError, match="a defect"), turn:
        raise ValueError("a defect")
    with turn:
        pass
