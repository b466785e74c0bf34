"""Signals are remembered, answered where it is asked, and given back afterwards."""

import os
import signal
import threading

import pytest

from runs.interrupt import WATCHED, Interrupted, InterruptHandler


@pytest.fixture(autouse=True)
def _as_in_a_terminal():
    """A shell starts jobs in the background with Ctrl-C ignored, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "name"), [(number, {"SIGINT": "Ctrl-C"}.get(number.name, number.name)) for number in WATCHED]
)
def test_the_first_signal_waits_and_the_second_leaves_at_once(number, name):
    before, interrupts = signal.getsignal(number), InterruptHandler()

    def twice():
        with interrupts:
            interrupts.stop_if_requested()
            os.kill(os.getpid(), number)
            assert interrupts.signal_name == name
            with pytest.raises(Interrupted, match=name):
                interrupts.stop_if_requested(3, 4)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as caught:
        twice()
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(number) is before
    interrupts.stop_if_requested()


@pytest.mark.parametrize(
    "number", [number for number in WATCHED if number != signal.SIGTERM]
)  # in the background, with nohup
def test_what_the_process_ignores_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with InterruptHandler() as interrupts:
            os.kill(os.getpid(), number)
            assert interrupts.signal_name is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_that_nobody_asked_about_is_not_lost():
    def come_late():
        with InterruptHandler():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        come_late()


def test_in_another_thread_nothing_happens():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def enter():
        with InterruptHandler():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [before]
