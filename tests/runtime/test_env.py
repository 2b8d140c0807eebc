"""Loops: what is due never waits for all that was called."""

from __future__ import annotations

import threading

from tests.logs_of import SOON

from nitinol.env import AT_ONCE, Env


def test_thousands_of_calls_do_not_keep_a_timer_waiting() -> None:
    """A loop looks at its timers and sockets every few calls; calls keep their order, and all are made."""
    loop = Env().start_loop("test")
    made: list[int] = []
    done, rang = threading.Event(), threading.Event()
    at: list[int] = []

    def ring() -> None:
        at.append(len(made))
        rang.set()

    def begin() -> None:
        loop.call_later(0.0, ring)
        for number in range(50 * AT_ONCE):
            loop.call(made.append, number)
        loop.call(done.set)

    loop.call(begin)
    assert done.wait(SOON)
    assert rang.wait(SOON)
    assert made == list(range(50 * AT_ONCE))
    assert at[0] <= 2 * AT_ONCE
    assert loop.close(SOON)


def test_what_was_called_before_a_close_is_done() -> None:
    """However much it is."""
    loop = Env().start_loop("test")
    made: list[int] = []
    hold, held = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        hold.wait(SOON)

    loop.call(wait)
    assert held.wait(SOON)
    for number in range(10 * AT_ONCE):
        loop.call(made.append, number)
    closer = threading.Thread(target=loop.close, args=(SOON,))
    closer.start()
    hold.set()
    closer.join(SOON)
    assert made == list(range(10 * AT_ONCE))
