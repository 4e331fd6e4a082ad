"""SIGTERM and the watchdog, around a submission."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reattach.errors import Closing, Fenced, Held, Refused, StateLost, Terminated, Unavailable
from reattach.task import termination
from reattach.task.termination import TerminationHandler, message_of


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def ended() -> list[int]:
    return []


@pytest.fixture
def listening(tmp_path: Path, ended: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[TerminationHandler]:
    monkeypatch.setattr(termination, "END_SECONDS", 0.01)
    listening = TerminationHandler(tmp_path / "termination-log", ended.append)
    listening.install_handler()
    yield listening
    listening.remove_handler()
    for timer in timers():
        timer.join(5)


def timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def sigterm_deferred(listening: TerminationHandler, *actions: Callable[[], object]) -> None:
    """A block of these."""
    with listening.sigterm_deferred():
        for action in actions:
            action()


def fail() -> None:
    raise ValueError("the submission failed too")


@pytest.mark.parametrize("error", [StateLost("gone"), Held("who knows")])
def test_what_needs_a_person_is_told_as_held(error: BaseException) -> None:
    assert message_of(error).kind == "Held"


@pytest.mark.parametrize("error", [Unavailable("no answer"), Refused("403")])
def test_what_the_state_api_could_not_help_with_is_not_told_as_the_tasks_own_failure(error: BaseException) -> None:
    assert message_of(error).kind == "Unavailable"


class TestDeferring:
    def test_sigterm_waits_for_the_end_of_the_block(self, listening: TerminationHandler) -> None:
        done: list[str] = []
        with pytest.raises(Terminated):
            sigterm_deferred(listening, sigterm, lambda: done.append("the rest"))
        assert done == ["the rest"]

    def test_and_counts_more_than_what_the_block_raises(self, listening: TerminationHandler) -> None:
        with pytest.raises(Terminated):
            sigterm_deferred(listening, sigterm, fail)

    def test_while_waiting_it_counts_at_once(self, listening: TerminationHandler) -> None:
        done: list[str] = []
        wait = listening.interruptible(lambda _: sigterm())
        with pytest.raises(Terminated):
            sigterm_deferred(listening, lambda: wait(1.0), lambda: done.append("not reached"))
        assert done == []

    def test_one_that_came_before_the_wait_is_not_waited_with(self, listening: TerminationHandler) -> None:
        waited: list[float] = []
        wait = listening.interruptible(waited.append)
        with pytest.raises(Terminated):
            sigterm_deferred(listening, sigterm, lambda: wait(1.0))
        assert waited == []

    def test_after_a_wait_it_is_deferred_again(self, listening: TerminationHandler) -> None:
        done: list[str] = []
        wait = listening.interruptible(lambda _: None)
        with pytest.raises(Terminated):
            sigterm_deferred(listening, lambda: wait(1.0), sigterm, lambda: done.append("the rest"))
        assert done == ["the rest"]

    def test_after_the_block_it_counts_at_once(self, listening: TerminationHandler) -> None:
        with listening.sigterm_deferred():
            pass
        with pytest.raises(Terminated):
            sigterm()

    def test_what_must_end_begins_no_block(self, listening: TerminationHandler) -> None:
        listening.over = Closing("the run is being ended")
        with pytest.raises(Closing), listening.sigterm_deferred():
            pytest.fail("it must not begin")

    def test_a_block_in_another_thread_does_not_defer_the_main_one(self, listening: TerminationHandler) -> None:
        inside, leave = threading.Event(), threading.Event()

        def block() -> None:
            with contextlib.suppress(Terminated), listening.sigterm_deferred():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=block)
        thread.start()
        inside.wait(10)
        with pytest.raises(Terminated):
            sigterm()
        leave.set()
        thread.join()

    def test_a_wait_in_another_thread_does_not_end_what_is_deferred_in_the_main_one(
        self, listening: TerminationHandler
    ) -> None:
        waiting, leave = threading.Event(), threading.Event()

        def wait(_: float) -> None:
            waiting.set()
            leave.wait(10)

        thread = threading.Thread(target=lambda: listening.interruptible(wait)(1.0))
        done: list[str] = []
        with pytest.raises(Terminated):
            sigterm_deferred(
                listening, thread.start, lambda: waiting.wait(10), sigterm, lambda: done.append("the rest")
            )
        leave.set()
        thread.join()
        assert done == ["the rest"]

    def test_nor_does_its_end_defer_what_came_after(self, listening: TerminationHandler) -> None:
        waiting, leave = threading.Event(), threading.Event()

        def wait(_: float) -> None:
            waiting.set()
            leave.wait(10)

        thread = threading.Thread(target=lambda: listening.interruptible(wait)(1.0))
        sigterm_deferred(listening, thread.start, lambda: waiting.wait(10))
        leave.set()
        thread.join()
        with pytest.raises(Terminated):
            sigterm()


class TestSparing:
    def test_a_process_that_must_end_is_left_to_store_the_handle(
        self, listening: TerminationHandler, ended: list[int]
    ) -> None:
        with listening.end_delayed():
            listening.on_attempt_over(Fenced("another took over"))
            [timer] = timers()
            timer.join(0.2)
            assert ended == []
        timer.join(5)
        assert ended == [79]

    def test_but_not_for_ever(
        self, listening: TerminationHandler, ended: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(termination, "END_DELAY_SECONDS", 0.05)
        with listening.end_delayed():
            listening.on_attempt_over(Fenced("another took over"))
            for timer in timers():
                timer.join(5)
            assert ended == [79]

    def test_it_begins_no_submission(self, listening: TerminationHandler) -> None:
        listening.over = Fenced("another took over")
        with pytest.raises(Fenced), listening.end_delayed():
            pytest.fail("it must not begin")

    def test_an_evicted_one_may_use_its_grace_period(self, listening: TerminationHandler) -> None:
        listening.over = Terminated("SIGTERM")
        done = []
        with listening.end_delayed():
            done.append("submitted")
        assert done == ["submitted"]
