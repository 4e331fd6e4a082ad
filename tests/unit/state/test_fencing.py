"""Who may read and write: the last to open, and nobody else."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from reattach.api.messages import ProblemCode
from reattach.api.state import Seal, SealPurpose
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import (
    FENCED_SESSIONS_REMEMBERED,
    Clear,
    Session,
    change,
    check_current,
    complete,
    get,
    idempotent,
    list_records,
    open_state,
    seal,
)

NOW = datetime(2026, 7, 30, tzinfo=UTC)
FIRST = Session(1, "pod-1", "a")
SAME_POD = Session(1, "pod-1", "b")
STRANGER = Session(1, "pod-x", "x")
SECOND = Session(2, "pod-2", "c")
THIRD = Session(3, "pod-3", "d")


def opened_by(*sessions: Session, completed: bool = False) -> DurableState:
    state = DurableState()
    for session in sessions:
        state, _ = open_state(state, session, NOW)
    return complete(state, sessions[-1], None, NOW) if completed else state


def code_of(call: Callable[[], object]) -> ProblemCode | None:
    try:
        call()
    except RequestRejectedError as refused:
        return refused.code
    return None


def open_code(state: DurableState, session: Session) -> ProblemCode | None:
    return code_of(lambda: open_state(state, session, NOW))


@pytest.mark.parametrize(
    "state, session, code",
    [
        (DurableState(), FIRST, None),
        (opened_by(FIRST), FIRST, None),
        (opened_by(FIRST), SAME_POD, None),
        (opened_by(FIRST), SECOND, None),
        (opened_by(FIRST), THIRD, None),
        (opened_by(FIRST), STRANGER, ProblemCode.FENCED),
        (opened_by(SECOND), FIRST, ProblemCode.FENCED),
        (opened_by(FIRST, SECOND), FIRST, ProblemCode.FENCED),
        (opened_by(FIRST, SAME_POD), FIRST, ProblemCode.FENCED),
        (opened_by(FIRST, SAME_POD, THIRD), SECOND, ProblemCode.FENCED),
        (opened_by(FIRST, completed=True), FIRST, ProblemCode.COMPLETED),
        (opened_by(FIRST, completed=True), SAME_POD, ProblemCode.COMPLETED),
        (opened_by(FIRST, SAME_POD, completed=True), FIRST, ProblemCode.FENCED),
        (opened_by(FIRST, completed=True), SECOND, None),
    ],
)
def test_who_may_open(state: DurableState, session: Session, code: ProblemCode | None) -> None:
    assert open_code(state, session) is code


@pytest.mark.parametrize(
    "state, session, code",
    [
        (opened_by(FIRST), FIRST, None),
        (opened_by(FIRST, SECOND), SECOND, None),
        (DurableState(), FIRST, ProblemCode.NOT_OPEN),
        (opened_by(FIRST), SECOND, ProblemCode.NOT_OPEN),
        (opened_by(FIRST, SECOND), FIRST, ProblemCode.FENCED),
        (opened_by(FIRST, SAME_POD), FIRST, ProblemCode.FENCED),
        (opened_by(FIRST), SAME_POD, ProblemCode.FENCED),
        (opened_by(FIRST), STRANGER, ProblemCode.FENCED),
        (opened_by(FIRST), Session(1, "pod-x", "a"), ProblemCode.FENCED),
    ],
)
def test_who_may_call(state: DurableState, session: Session, code: ProblemCode | None) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: check_current(state, session),
        lambda: list_records(state, session),
        lambda: change(state, session, [Clear()], NOW),
        lambda: complete(state, session, None, NOW),
        lambda: idempotent(state, session, None, lambda now_is: (now_is, b"")),
    )
    assert {code_of(call) for call in calls} == {code}
    # For one who may call, the key is merely absent; a fenced one must never be told so.
    assert code_of(lambda: get(state, session, "k")) is (code or ProblemCode.NOT_FOUND)


def test_opening_again_changes_nothing() -> None:
    state = opened_by(FIRST)
    assert open_state(state, FIRST, datetime(2027, 1, 1, tzinfo=UTC)) == (state, True)


@pytest.mark.parametrize(
    "sessions, first",
    [
        ((FIRST,), True),
        ((FIRST, SAME_POD), True),
        ((FIRST, SECOND), False),
        ((SECOND,), True),
        ((SECOND, THIRD), False),
    ],
)
def test_first_means_that_no_attempt_before_this_one_opened_the_state(
    sessions: tuple[Session, ...], first: bool
) -> None:
    *before, last = sessions
    state = opened_by(*before) if before else DurableState()
    after, answer = open_state(state, last, NOW)
    assert answer is first
    assert open_state(after, last, NOW)[1] is first


def test_what_was_stored_stays_when_another_takes_over() -> None:
    state = opened_by(FIRST, SAME_POD)
    after, _ = open_state(state, SECOND, NOW)
    assert (after.records, after.last_version, after.completion) == (
        state.records,
        state.last_version,
        state.completion,
    )


def test_what_the_task_declared_is_kept() -> None:
    state, _ = open_state(DurableState(), FIRST, NOW, can_cleanup=True)
    assert state.epoch is not None
    assert state.epoch.can_cleanup


def test_the_last_64_sessions_of_a_pod_cannot_come_back() -> None:
    sessions = [Session(1, "pod-1", f"s{number}") for number in range(FENCED_SESSIONS_REMEMBERED + 1)]
    state = opened_by(*sessions)
    assert {open_code(state, session) for session in sessions[:-1]} == {ProblemCode.FENCED}


END, SUSPEND = SealPurpose.END, SealPurpose.SUSPEND


@pytest.mark.parametrize(
    "through, purpose, session, code",
    [
        (1, SUSPEND, FIRST, ProblemCode.CLOSING),
        (1, SUSPEND, SECOND, None),
        (2, SUSPEND, SECOND, ProblemCode.CLOSING),
        (2, SUSPEND, THIRD, None),
        (1, END, FIRST, ProblemCode.CLOSING),
        (1, END, SECOND, ProblemCode.CLOSING),
        (0, END, FIRST, ProblemCode.CLOSING),
    ],
)
def test_who_may_open_a_sealed_state(
    through: int, purpose: SealPurpose, session: Session, code: ProblemCode | None
) -> None:
    assert open_code(seal(DurableState(), through, purpose), session) is code
    assert open_code(seal(opened_by(FIRST), through, purpose), session) is code


def test_who_was_overtaken_is_told_so_also_when_the_state_is_sealed() -> None:
    assert open_code(seal(opened_by(FIRST, SECOND), 2, END), FIRST) is ProblemCode.FENCED
    assert open_code(seal(opened_by(FIRST, SAME_POD), 1, END), FIRST) is ProblemCode.FENCED


@pytest.mark.parametrize(
    "seals, kept",
    [
        ([(1, SUSPEND)], (1, SUSPEND)),
        ([(2, SUSPEND), (1, SUSPEND)], (2, SUSPEND)),
        ([(1, SUSPEND), (2, END)], (2, END)),
        ([(1, END), (2, SUSPEND)], (2, END)),
        ([(2, END), (1, END)], (2, END)),
    ],
)
def test_a_seal_only_grows(seals: list[tuple[int, SealPurpose]], kept: tuple[int, SealPurpose]) -> None:
    state = DurableState()
    for through, purpose in seals:
        state = seal(state, through, purpose)
    assert state.seal == Seal(through_attempt=kept[0], purpose=kept[1])
    assert seal(state, *kept) == state


def test_the_one_who_has_a_sealed_state_open_goes_on_reading_and_writing() -> None:
    state = seal(opened_by(FIRST), 1, END)
    change(state, FIRST, [Clear()], NOW)
    list_records(state, FIRST)
    assert complete(state, FIRST, b"1", NOW).completion is not None
