"""The cases of the conformance suite: faults of attempts and of the external system.

The expected result follows from the adapter's capabilities and from the known facts. This module
computes it independently of the code under test.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from typing_extensions import override

from reattach.adapters.base import Active, Cancelled, Capabilities, Failed, NotFound, Rejected, Submitted
from reattach.errors import Held

if TYPE_CHECKING:
    from collections.abc import Callable

    from reattach.testing.conformance import CaseRun
    from reattach.testing.task_process import TaskProcess

CONCURRENT_PROCESSES, ROUNDS = 8, 3
"""Number of processes that submit one job at once, and of repetitions.

Several rounds are needed, because the submissions of one round may happen to be serial.
"""
QUIET_SECONDS = 120.0
"""Seconds that jobs of earlier cases may still run."""
CANCELLED_SECONDS = 60.0
"""Seconds that a cancelled job may take to end."""
MARGIN_SECONDS = 5.0
"""Seconds that the SDK allows beyond the longest request."""
NOT_FOUND_POLLS = 4
"""Number of polls after which the SDK has certainly acted on `NotFound`."""
RETRY_SECONDS = 60.0
"""Longest interval of the SDK's retries, which is how late it notices the end of a fault."""
LOOKUPS, LOOKUP_INTERVAL = 10, 1.0
"""Number of tries of a lookup by the suite itself until it does not fail, and their interval."""


class ExpectedResult(StrEnum):
    """Result of a case. Only the first two are correct, and two jobs never are."""

    ONE_JOB = "one job"
    """The task completed, and the external system made one job."""
    HELD = "held"
    """The run is held, because it is unknown whether there is a job. At most one job was made."""
    FAILED = "failed"
    """The run failed, or is held for another reason.

    This is wrong in every case, because every job that the suite submits succeeds.
    """


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the external system, which the adapter sees.

    how: `error`: the system does nothing and returns 500 or another error of its own. `half`: it
        does its work and returns such an error. `lose`: it does its work and cuts the connection.
    on: calls that have the fault.
    once: only the next call has the fault. Otherwise, all calls have it until the fault is cleared.
    """

    how: Literal["error", "half", "lose"]
    on: Literal["submit", "look-up", "status"]
    once: bool = False


@dataclass(frozen=True, kw_only=True)
class UnresolvedSubmission:
    """The known facts when an attempt finds an intent without a handle.

    exists: there is a job that a lookup finds.
    all_ended: all processes that may have submitted have ended, except the one that resolves.
    age: seconds since the intent.
    """

    exists: bool
    all_ended: bool = True
    age: float = 10.0


def kept_after_end(capabilities: Capabilities) -> Capabilities:
    """Return the capabilities without those that end with the job."""
    name, token, look_up = capabilities.client_name, capabilities.token, capabilities.look_up
    return replace(
        capabilities,
        client_name=None if name and name.while_open else name,
        token=None if token and token.while_open else token,
        look_up=None if look_up and look_up.while_open else look_up,
    )


def expected(capabilities: Capabilities, request_seconds: float, unresolved: UnresolvedSubmission) -> ExpectedResult:
    """Return the result that the resolution of a submission must have."""
    kept = kept_after_end(capabilities)
    name, look_up, token = kept.client_name, kept.look_up, kept.token
    arrived = unresolved.age + request_seconds + MARGIN_SECONDS
    if name and (name.retention is None or arrived < name.retention.total_seconds()):
        return ExpectedResult.ONE_JOB
    if capabilities.look_up and unresolved.exists:
        return ExpectedResult.ONE_JOB
    if not unresolved.all_ended:
        return ExpectedResult.HELD
    if token and arrived < token.lifetime.total_seconds():
        return ExpectedResult.ONE_JOB
    if look_up:
        until = unresolved.age + look_up.settling.total_seconds()
        if look_up.retention is None or until < look_up.retention.total_seconds():
            return ExpectedResult.ONE_JOB
    return ExpectedResult.HELD


def settling_of(capabilities: Capabilities) -> float:
    """Return the settling time of lookups in seconds, or 0 without lookups."""
    return capabilities.look_up.settling.total_seconds() if capabilities.look_up else 0.0


def absence_seconds(capabilities: Capabilities, request_seconds: float) -> float:
    """Return the seconds from the start of an attempt until a lookup proves absence.

    Return 0 if no lookup proves it.
    """
    look_up = kept_after_end(capabilities).look_up
    if look_up is None:
        return 0.0
    seconds = request_seconds + MARGIN_SECONDS + look_up.settling.total_seconds()
    if look_up.retention is not None and look_up.retention.total_seconds() <= seconds + MARGIN_SECONDS:
        return 0.0
    return seconds


def find_false_report(fault: Fault, response: object) -> str:
    """Return why what an adapter returned or raised is false, or an empty string.

    The external system has the job and makes the call fail, so the adapter can't know these facts.
    """
    match fault.on, response:
        case "submit", Rejected() if fault.how != "error":
            return f"submit raised {response!r:.200}, but a job was made; it must raise an error other than Rejected"
        case "look-up", None:
            return "look_up returned None when the external system returned an error; it must raise an error"
        case "status", Failed() | Cancelled() | NotFound():
            what = f"status returned {response!r:.200}"
            return f"{what} when the external system returned an error; it must return Unknown or raise an error"
        case _:
            return ""


Arrangement: TypeAlias = "UnresolvedSubmission | ExpectedResult | frozenset[ExpectedResult] | None"


@dataclass(frozen=True)
class Case:
    """One case.

    arrange: injects the faults, and returns the facts that an attempt then finds, or the expected
        result. Returns None if no submission becomes ambiguous.
    skip_reason: returns why the case can't be run, or an empty string.
    """

    name: str
    what: str
    arrange: "Callable[[CaseRun], Arrangement]"
    skip_reason: "Callable[[CaseRun], str]" = lambda _scene: ""

    @override
    def __str__(self) -> str:
        return self.name


def _no_fault(_scene: "CaseRun") -> None:
    return None


def _crash_at(step: str, unresolved: UnresolvedSubmission | None) -> "Callable[[CaseRun], UnresolvedSubmission | None]":
    def arrange(case_run: "CaseRun") -> UnresolvedSubmission | None:
        case_run.at_step(1, step, lambda process: process.kill())
        return unresolved

    return arrange


def _crash_in_flight(case_run: "CaseRun") -> UnresolvedSubmission:
    """Kill the process after its request has left. The request arrives later."""

    def crash() -> None:
        case_run.adapter(1).deliver_later(case_run.timing.in_flight)
        case_run.process(1).kill()

    case_run.at_step(1, "submit leaving", lambda _process: crash())
    return UnresolvedSubmission(exists=True)


def _submit_at_once(case_run: "CaseRun") -> None:
    """Submit from several processes at once.

    A name that the external system enforces is unique even then. An adapter that only looks up
    before it submits makes several jobs.
    """

    def submit() -> None:
        rounds = [case_run.submit_concurrently(CONCURRENT_PROCESSES) for _ in range(ROUNDS)]
        case_run.checks.append(
            lambda: next((problem for handles in rounds if (problem := _find_handle_mismatch(handles))), "")
        )

    case_run.at_step(1, "submit leaving", lambda _process: submit())


def _find_handle_mismatch(handles: set[str]) -> str:
    if len(handles) == 1:
        return ""
    return f"concurrent submissions must all return the same handle; they returned {sorted(handles) or 'none'}"


def _lose_request(case_run: "CaseRun") -> UnresolvedSubmission:
    case_run.fail_once(1, "submit leaving")
    return UnresolvedSubmission(exists=False)


def _lose_response(case_run: "CaseRun") -> UnresolvedSubmission:
    case_run.fail_once(1, "submit accepted")
    return UnresolvedSubmission(exists=True)


def _wait_until_found(case_run: "CaseRun") -> None:
    """Start the next attempt when a lookup finds the job, because it is held otherwise."""
    if kept_after_end(case_run.capabilities).client_name is None:
        case_run.before_main(2, lambda process: process.sleep(settling_of(case_run.capabilities)))


def _lose_response_while_lookups_lag(case_run: "CaseRun") -> UnresolvedSubmission:
    case_run.at_step(1, "submit accepted", lambda process: process.kill())
    case_run.delay_lookups()
    return UnresolvedSubmission(exists=True)


def _time_out(case_run: "CaseRun") -> UnresolvedSubmission:
    """Time out. The request arrives afterwards."""

    def give_up() -> None:
        adapter = case_run.adapter(1)
        adapter.deliver_later(adapter.request_seconds + case_run.timing.in_flight)
        case_run.process(1).sleep(adapter.request_seconds)
        raise TimeoutError("no response within request_seconds")

    case_run.at_step(1, "submit leaving", lambda _process: give_up())
    return UnresolvedSubmission(exists=True, age=10 + case_run.request_seconds)


def _slow_request(case_run: "CaseRun") -> None:
    case_run.at_step(1, "submit leaving", lambda process: process.sleep(0.8 * case_run.request_seconds))


def _outage_while_submitting(case_run: "CaseRun") -> UnresolvedSubmission:
    case_run.start_outage(from_step="submit leaving", seconds=case_run.timing.outage)
    return UnresolvedSubmission(exists=False, age=10 + case_run.timing.outage)


def _outage_while_watching(case_run: "CaseRun") -> None:
    case_run.start_outage(from_step="watching", seconds=case_run.timing.outage)


def _status_error(case_run: "CaseRun") -> None:
    case_run.fail_once(1, "status leaving")


def _fault_once(how: Literal["error", "half", "lose"]) -> "Callable[[CaseRun], UnresolvedSubmission]":
    """Fail one submission.

    The adapter must raise another error than `Rejected`, because a job may exist.
    """

    def arrange(case_run: "CaseRun") -> UnresolvedSubmission:
        case_run.inject_fault(Fault(how=how, on="submit", once=True))
        return UnresolvedSubmission(exists=how != "error")

    return arrange


def _fault_on_submit(case_run: "CaseRun") -> UnresolvedSubmission:
    fault = Fault(how="error", on="submit")
    case_run.at_step(1, "submit leaving", lambda _process: case_run.inject_fault(fault, case_run.timing.outage))
    return UnresolvedSubmission(exists=False, age=10 + case_run.timing.outage)


def _fault_on_lookup(case_run: "CaseRun") -> "frozenset[ExpectedResult]":
    """Fail lookups until the SDK would take one without a job as a proof of absence.

    The adapter must raise an error, because None would mean that there is no job.
    """
    seconds = max(
        case_run.timing.outage, absence_seconds(case_run.capabilities, case_run.request_seconds) + MARGIN_SECONDS
    )

    def crash() -> None:
        case_run.inject_fault(Fault(how="error", on="look-up"), seconds)
        case_run.look_up(1)
        case_run.process(1).kill()

    case_run.at_step(1, "submit accepted", lambda _process: crash())
    case_run.at_step(2, "lookup leaving", lambda _process: case_run.clear_faults_in(seconds))
    # The SDK has decided, and the fault of lookups may be one of submissions and statuses, too.
    case_run.at_step(2, "submit leaving", lambda _process: case_run.clear_faults())
    look_up = case_run.capabilities.look_up
    retention = look_up.retention if look_up else None
    may_be_forgotten = retention is not None and retention.total_seconds() < 10 + seconds + RETRY_SECONDS
    if may_be_forgotten or (look_up is not None and look_up.while_open):
        return frozenset({ExpectedResult.ONE_JOB, ExpectedResult.HELD})
    return frozenset({ExpectedResult.ONE_JOB})


def _fault_on_status(case_run: "CaseRun") -> None:
    """Fail status calls for longer than the SDK needs to act on `NotFound`.

    The adapter must not report the job as failed or absent.
    """
    fault = Fault(how="error", on="status")

    def begin() -> None:
        polls = NOT_FOUND_POLLS * case_run.adapter(1).poll_seconds
        case_run.inject_fault(fault, max(case_run.timing.outage, settling_of(case_run.capabilities) + polls))

    case_run.at_step(1, "watching", lambda _process: begin())


def _look_up_after_settling(case_run: "CaseRun") -> None:
    """Look the job up as soon as the adapter declares that it is found."""
    settling = settling_of(case_run.capabilities)

    def look_up(process: "TaskProcess") -> None:
        process.sleep(settling)
        for _ in range(LOOKUPS):
            found = case_run.look_up(1)
            if not isinstance(found, Exception):
                break
            process.sleep(LOOKUP_INTERVAL)
        handle = case_run.adapter(1).handles[0]
        case_run.checks.append(lambda: _find_lookup_mismatch(found, handle, settling))

    case_run.at_step(1, "submit accepted", look_up)


def _find_lookup_mismatch(found: Submitted | Exception | None, handle: str, settling: float) -> str:
    if isinstance(found, Submitted) and found.handle == handle:
        return ""
    what = "raised" if isinstance(found, Exception) else "returned"
    return (
        f"look_up must find the job {settling:.0f} s after its submission, as the adapter declares by settling, and"
        f" return the handle {handle}; it {what} {found!r:.200}"
    )


def _expire_token(case_run: "CaseRun") -> UnresolvedSubmission:
    lifetime = case_run.capabilities.token.lifetime.total_seconds() if case_run.capabilities.token else 0
    case_run.at_step(1, "after-intent", lambda process: process.kill())
    case_run.before_main(2, lambda process: process.sleep(lifetime + 1))
    return UnresolvedSubmission(exists=False, age=lifetime + 1)


def _forget_name(case_run: "CaseRun") -> UnresolvedSubmission:
    """Start the next attempt after the name has expired.

    The external system may have forgotten the job with its name. Only a lookup with a longer
    retention finds the job.
    """
    retention = _name_retention_of(case_run.capabilities)
    case_run.at_step(1, "submit accepted", lambda process: process.kill())
    case_run.before_main(2, lambda process: process.sleep(retention + 1))
    look_up = case_run.capabilities.look_up
    is_found = look_up is not None and (look_up.retention is None or retention < look_up.retention.total_seconds())
    return UnresolvedSubmission(exists=is_found, age=retention + 1)


def _name_retention_of(capabilities: Capabilities) -> float:
    """Return the retention of names in seconds, or 0 if there are no names or they never expire."""
    name = capabilities.client_name
    return name.retention.total_seconds() if name and name.retention else 0.0


def _guarantees_of(capabilities: Capabilities) -> list[float]:
    """Return the seconds after which the guarantees of the external system expire."""
    kept = kept_after_end(capabilities)
    times = (
        kept.client_name and kept.client_name.retention,
        kept.token and kept.token.lifetime,
        kept.look_up and kept.look_up.retention,
    )
    return [time.total_seconds() for time in times if time]


def _end_before_the_next_attempt(case_run: "CaseRun") -> "frozenset[ExpectedResult]":
    """Start the next attempt when the job has ended.

    A name or token that is then free no longer prevents a second job.
    """
    case_run.at_step(1, "submit accepted", lambda process: process.kill())

    def wait(process: "TaskProcess") -> None:
        [handle] = case_run.adapter(1).handles
        adapter = case_run.system.adapter()
        for _ in range(int(QUIET_SECONDS)):
            if not isinstance(adapter.status(handle), Active):
                break
            process.sleep(1)

    case_run.before_main(2, wait)
    look_up = case_run.capabilities.look_up
    is_found = look_up is not None and not look_up.while_open
    # The suite does not know how long the job takes. A guarantee may expire meanwhile.
    unresolved = (UnresolvedSubmission(exists=is_found, age=age) for age in (10, 10 + QUIET_SECONDS))
    return frozenset(expected(case_run.capabilities, case_run.request_seconds, each) for each in unresolved)


def _retry_just_in_time(case_run: "CaseRun") -> UnresolvedSubmission:
    """Start the next attempt shortly before a guarantee expires, while it must still hold."""
    wait = 0.9 * min(_guarantees_of(case_run.capabilities)) - case_run.request_seconds - MARGIN_SECONDS
    case_run.at_step(1, "submit accepted", lambda process: process.kill())
    case_run.before_main(2, lambda process: process.sleep(wait))
    return UnresolvedSubmission(exists=True, age=wait + 10)


def _forget_before_lookup(case_run: "CaseRun") -> UnresolvedSubmission:
    retention = case_run.capabilities.look_up.retention if case_run.capabilities.look_up else None
    wait = retention.total_seconds() + 1 if retention else 0
    case_run.at_step(1, "submit accepted", lambda process: process.kill())

    def start_late() -> None:
        case_run.process(2).sleep(wait)
        case_run.forget()

    case_run.before_main(2, lambda _process: start_late())
    return UnresolvedSubmission(exists=False, age=wait + 10)


def _forget_while_watched(case_run: "CaseRun") -> ExpectedResult:
    """Forget a job that existed. The run is held, because the job has not necessarily failed."""

    def crash() -> None:
        case_run.forget()
        case_run.process(1).kill()

    case_run.at_step(1, "watching", lambda _process: crash())
    return ExpectedResult.HELD


def _cancel_at(step: str) -> "Callable[[CaseRun], frozenset[ExpectedResult]]":
    """Kill the process at a step of cancelling.

    If the external system deletes a cancelled job, the next attempt can't distinguish it from a
    lost one, and the run is held.
    """

    def arrange(case_run: "CaseRun") -> frozenset[ExpectedResult]:
        case_run.cancels = True
        case_run.at_step(1, step, lambda process: process.kill())
        case_run.checks.append(lambda: _find_job_not_cancelled(case_run))
        if case_run.system.count_running is not None:
            case_run.checks.append(_running_check(case_run, case_run.system.count_running))
        return frozenset(
            {ExpectedResult.ONE_JOB} if step == "before-cancel" else {ExpectedResult.ONE_JOB, ExpectedResult.HELD}
        )

    return arrange


def _find_job_not_cancelled(case_run: "CaseRun") -> str:
    others = [status for status in case_run.final_statuses if not isinstance(status, Cancelled | NotFound)]
    return f"the job was cancelled, but the external system reports {others[0]}" if others else ""


def _running_check(case_run: "CaseRun", count_running: "Callable[[], int]") -> "Callable[[], str]":
    """Return a check that the job has ended, which does not rely on the adapter."""
    clock = case_run.cluster.clock
    clock.wait(lambda: count_running() == 0, QUIET_SECONDS)
    before = count_running()

    def check() -> str:
        if clock.wait(lambda: count_running() <= before, CANCELLED_SECONDS):
            return ""
        return f"the job was cancelled, but still runs: {count_running()} running now, {before} before"

    return check


def _freeze_at(
    step: str, unresolved: UnresolvedSubmission | None
) -> "Callable[[CaseRun], UnresolvedSubmission | None]":
    """Freeze the process at a step, on a node that is lost.

    The operator presumes the end of the attempt. Later, the process continues where it was.
    """

    def arrange(case_run: "CaseRun") -> UnresolvedSubmission | None:
        case_run.at_step(1, step, case_run.freeze)
        if unresolved is not None and unresolved.exists:
            _wait_until_found(case_run)
        return unresolved

    return arrange


def _lose_node_at(step: str, unresolved: UnresolvedSubmission) -> "Callable[[CaseRun], UnresolvedSubmission]":
    def arrange(case_run: "CaseRun") -> UnresolvedSubmission:
        def lose_node() -> None:
            case_run.lose_node(case_run.process(1))
            case_run.process(1).kill()

        case_run.at_step(1, step, lambda _process: lose_node())
        if unresolved.exists:
            _wait_until_found(case_run)
        return unresolved

    return arrange


def _evict(case_run: "CaseRun") -> UnresolvedSubmission:
    def evict() -> None:
        case_run.evict(case_run.process(1))
        case_run.process(1).kill()

    case_run.at_step(1, "submit accepted", lambda _process: evict())
    return UnresolvedSubmission(exists=True)


def _change_request(case_run: "CaseRun") -> ExpectedResult:
    """Change the request between two attempts. The run is held, because its first job is kept."""
    case_run.at_step(1, "watching", lambda process: process.kill())
    case_run.requests[2] = case_run.system.other_request

    def check() -> str:
        error = case_run.process(2).error
        if isinstance(error, Held) and "another request" in str(error):
            return ""
        return f"attempt 2 has another request and must end with Held; it ended with {error!r}"

    case_run.checks.append(check)
    return ExpectedResult.HELD


def _stop_state_api(case_run: "CaseRun") -> None:
    """Stop the state API. The task must not submit before the intent is stored."""

    def stop() -> None:
        jobs = case_run.system.count_jobs()
        case_run.stop_state_api(case_run.timing.outage)
        case_run.at_step(1, "submit leaving", lambda _process: case_run.check_submitted_early(jobs))
        case_run.checks.append(lambda: case_run.submitted_early)

    case_run.at_step(1, "before-intent", lambda _process: stop())


def _two_crashes(case_run: "CaseRun") -> UnresolvedSubmission:
    case_run.at_step(1, "submit accepted", lambda process: process.kill())
    case_run.at_step(2, "after-intent", lambda process: process.kill())
    return UnresolvedSubmission(exists=True)


def _skip_without_name_or_token(case_run: "CaseRun") -> str:
    return (
        ""
        if case_run.capabilities.client_name or case_run.capabilities.token
        else "it declares neither a name nor a token"
    )


def _skip_without_token(case_run: "CaseRun") -> str:
    if case_run.capabilities.token is None:
        return "it declares no token"
    if case_run.capabilities.token.while_open:
        return "its tokens end with the job"
    return case_run.reason_if_too_long(case_run.capabilities.token.lifetime.total_seconds(), "its token is valid")


def _skip_without_expiring_name(case_run: "CaseRun") -> str:
    if case_run.capabilities.client_name is None:
        return "it declares no name"
    if case_run.capabilities.client_name.while_open:
        return "its names end with the job"
    if case_run.capabilities.client_name.retention is None:
        return "its names are kept for ever"
    return case_run.reason_if_too_long(_name_retention_of(case_run.capabilities), "its names are kept")


def _skip_without_expiring_guarantee(case_run: "CaseRun") -> str:
    guarantees = _guarantees_of(case_run.capabilities)
    if not guarantees:
        return "none of its guarantees expires"
    if min(guarantees) < 2 * case_run.request_seconds:
        return "a guarantee expires during a request"
    return case_run.reason_if_too_long(min(guarantees), "its guarantees last")


def _skip_without_lookup(case_run: "CaseRun") -> str:
    return "" if case_run.capabilities.look_up else "it declares no lookup"


def _skip_without_proof_of_absence(case_run: "CaseRun") -> str:
    if why := _skip_without_lookup(case_run):
        return why
    if absence_seconds(case_run.capabilities, case_run.request_seconds):
        return ""
    if case_run.capabilities.look_up is not None and case_run.capabilities.look_up.while_open:
        return "no lookup proves absence, because only open jobs are found"
    return "no lookup proves absence, because jobs are forgotten first"


def _skip_without_retention(case_run: "CaseRun") -> str:
    if case_run.system.forget is None:
        return "ExternalSystem.forget is not set"
    if case_run.capabilities.look_up is None or case_run.capabilities.look_up.retention is None:
        return "it declares no retention of lookups"
    retention = case_run.capabilities.look_up.retention
    kept = kept_after_end(case_run.capabilities)
    name, token = kept.client_name, kept.token
    if (name and (name.retention is None or name.retention > retention)) or (token and token.lifetime > retention):
        return "its names or tokens are kept for longer than jobs"
    return case_run.reason_if_too_long(retention.total_seconds(), "a lookup finds jobs")


def _skip_without_fail(case_run: "CaseRun") -> str:
    return "" if case_run.system.fail else "ExternalSystem.fail is not set"


def _skip_without_fail_and_lookup(case_run: "CaseRun") -> str:
    return _skip_without_fail(case_run) or _skip_without_lookup(case_run)


def _skip_without_lasting_job(case_run: "CaseRun") -> str:
    return "" if case_run.system.lasting_request is not None else "ExternalSystem.lasting_request is not set"


def _skip_without_forget(case_run: "CaseRun") -> str:
    return "" if case_run.system.forget else "ExternalSystem.forget is not set"


_ABSENT = UnresolvedSubmission(exists=False)
_EXISTS = UnresolvedSubmission(exists=True)
_FROZEN = UnresolvedSubmission(exists=False, all_ended=False)
_FROZEN_EXISTS = UnresolvedSubmission(exists=True, all_ended=False)

CASES: tuple[Case, ...] = (
    Case("undisturbed", "nothing goes wrong", _no_fault),
    Case("before intent", "crash before the intent is stored", _crash_at("before-intent", None)),
    Case("intent lost", "crash when the intent is on its way to the state API", _crash_at("before POST intent", None)),
    Case(
        "intent stored",
        "crash when it is stored, before the response",
        _crash_at("after POST intent", _ABSENT),
    ),
    Case("after intent", "crash when the intent is stored", _crash_at("after-intent", _ABSENT)),
    Case("before submit", "crash right before the request", _crash_at("submit leaving", _ABSENT)),
    Case("request left", "crash with the request on its way; it arrives", _crash_in_flight),
    Case("response lost", "crash after the external system has accepted", _crash_at("submit accepted", _EXISTS)),
    Case(
        "job ends unseen",
        "the response is lost, and the job ends before the next attempt",
        _end_before_the_next_attempt,
    ),
    Case("handle on its way", "crash before the handle is stored", _crash_at("before PUT handle", _EXISTS)),
    Case("handle stored", "crash when it is stored, before the response", _crash_at("after PUT handle", None)),
    Case("after handle", "crash after the handle was recorded", _crash_at("after-handle", None)),
    Case("watching", "crash while the job is watched", _crash_at("watching", None)),
    Case("job ended", "crash before the outcome is recorded", _crash_at("before-outcome", None)),
    Case("outcome recorded", "crash after it is recorded, before the task completes", _crash_at("after-outcome", None)),
    Case("before cancel", "crash before the job is cancelled", _cancel_at("before-cancel"), _skip_without_lasting_job),
    Case(
        "during cancel",
        "crash after the external system has cancelled it",
        _cancel_at("cancel accepted"),
        _skip_without_lasting_job,
    ),
    Case("after cancel", "crash after the job was cancelled", _cancel_at("after-cancel"), _skip_without_lasting_job),
    Case("two crashes", "the response is lost, and the next attempt crashes too", _two_crashes),
    Case("evicted", "evicted after the external system has accepted", _evict),
    Case("at once", "several processes submit the same job at once", _submit_at_once, _skip_without_name_or_token),
    Case("request failed", "an error, and the request did not arrive", _lose_request),
    Case("response failed", "an error, and the job was made", _lose_response),
    Case("slow", "the external system takes nearly as long as it may", _slow_request),
    Case("too slow", "the request times out, and arrives afterwards", _time_out),
    Case("down for submit", "the external system is down during the submission", _outage_while_submitting),
    Case("down for status", "the external system is down while the job runs", _outage_while_watching),
    Case("one error", "the external system returns one error for the status", _status_error),
    Case("500, not made", "a submission gets 500, and made no job", _fault_once("error"), _skip_without_fail),
    Case("500, made", "a submission gets 500, and made the job", _fault_once("half"), _skip_without_fail),
    Case(
        "cut, made",
        "the job is made, and the connection is cut before the response",
        _fault_once("lose"),
        _skip_without_fail,
    ),
    Case("500 on submit", "submissions get 500 for a while", _fault_on_submit, _skip_without_fail),
    Case(
        "500 on lookup",
        "the response is lost, and lookups get 500 for a while",
        _fault_on_lookup,
        _skip_without_fail_and_lookup,
    ),
    Case("500 on status", "requests for the status get 500 for a while", _fault_on_status, _skip_without_fail),
    Case("token expired", "the next attempt starts after the token has expired", _expire_token, _skip_without_token),
    Case(
        "name forgotten",
        "the next attempt starts after the name is forgotten",
        _forget_name,
        _skip_without_expiring_name,
    ),
    Case(
        "just in time",
        "the next attempt starts shortly before a guarantee expires",
        _retry_just_in_time,
        _skip_without_expiring_guarantee,
    ),
    Case(
        "found in time",
        "the job is looked up as soon as the settling time is over",
        _look_up_after_settling,
        _skip_without_proof_of_absence,
    ),
    Case(
        "lookup lags",
        "the job is not found until the settling time is over",
        _lose_response_while_lookups_lag,
        _skip_without_lookup,
    ),
    Case(
        "forgotten unseen",
        "the job is forgotten before it is looked up",
        _forget_before_lookup,
        _skip_without_retention,
    ),
    Case("forgotten", "the job is forgotten while it is watched", _forget_while_watched, _skip_without_forget),
    Case(
        "frozen in submit",
        "frozen before the request leaves; its end is presumed",
        _freeze_at("submit leaving", _FROZEN),
    ),
    Case(
        "frozen after", "frozen after the external system has accepted", _freeze_at("submit accepted", _FROZEN_EXISTS)
    ),
    Case("frozen before intent", "frozen before the intent is stored", _freeze_at("before-intent", None)),
    Case("frozen after intent", "frozen when the intent is stored", _freeze_at("after-intent", _FROZEN)),
    Case("frozen with handle", "frozen before the handle is recorded", _freeze_at("before PUT handle", _FROZEN_EXISTS)),
    Case("frozen watching", "frozen while the job is watched", _freeze_at("watching", None)),
    Case("node dies", "dead with its node before the request", _lose_node_at("submit leaving", _FROZEN)),
    Case(
        "node dies after",
        "dead with its node after the external system has accepted",
        _lose_node_at("submit accepted", _FROZEN_EXISTS),
    ),
    Case("digest changed", "the next attempt has another request", _change_request),
    Case("state API down", "the state API is down at the moment of submission", _stop_state_api),
)
"""All cases, from the submission of a job to its end."""
