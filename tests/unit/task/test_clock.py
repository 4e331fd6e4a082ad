"""What is counted from goes on while the machine sleeps."""

import time

from reattach.adapters.http_client import BoundedHttpClient
from reattach.clock import monotonic
from reattach.task.client import Timing


def test_it_is_the_clock_that_goes_on_while_the_machine_sleeps() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = monotonic()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_submission_is_timed_by_it_from_the_question_until_it_leaves() -> None:
    assert Timing().clock is monotonic
    assert BoundedHttpClient("http://127.0.0.1:9", 20).clock is monotonic
