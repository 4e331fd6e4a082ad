"""The cases of the conformance suite: where an attempt breaks, what the other side does meanwhile, and what must come of it.

What must come of it follows from what the adapter declares and from what is known then, by the rules of submitting once; it is worked out
here anew, not asked of the code that is tested.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from typing_extensions import override

from reattach.adapters.base import Cancelled, Capabilities, NotFound
from reattach.errors import DigestChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from reattach.testing.conformance import CaseRun

CONCURRENT_HISTORIES, ROUNDS = 8, 3
"""How many submit the same at once, and how often: in one round they may happen to come one after the other."""
QUIET_SECONDS = 120.0
"""How long jobs of the cases before may still run."""
CANCELLED_SECONDS = 60.0
"""How long a job that was cancelled may take to end."""
MARGIN_SECONDS = 5.0
"""How much of its life a token must have beyond the longest request."""


class ExpectedResult(StrEnum):
    """How a case ends. Never by two jobs, and only by the first two."""

    ONE_JOB = "one job"
    """The task completed, and the other side made one job."""
    HELD = "held"
    """Nobody can know whether there is a job, so the run waits for a person, and the other side made one job or none."""
    FAILED = "failed"
    """The run failed, or waits for a person for another reason. Right in no case: every job that the suite asks for ends well."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What the other side itself does wrong, so that the adapter sees it.

    `how`: `error`: nothing is done, and the answer is 500, or what else says that something broke in there; `half`: it is done, and the answer
    is the same; `lose`: it is done, and the connection is cut instead of an answer. `on`: with which calls. `once`: with the next one alone;
    else with all of them until the other side is told otherwise.
    """

    how: Literal["error", "half", "lose"]
    on: Literal["submit", "look-up", "status"]
    once: bool = False


@dataclass(frozen=True, kw_only=True)
class UnresolvedSubmission:
    """What is known when the next attempt, or the same one, finds an intent without a handle.

    `exists`: there is a job that a look-up finds. `all_ended`: whoever may have submitted is known to be dead, or is the one who asks.
    `age`: seconds since the intent.
    """

    exists: bool
    all_ended: bool = True
    age: float = 10.0


def expected(can: Capabilities, request_seconds: float, found: UnresolvedSubmission) -> ExpectedResult:
    """DESIGN §5's ladder, as a table."""
    name, look_up, token = can.client_name, can.look_up, can.token
    arrived = found.age + request_seconds + MARGIN_SECONDS
    if name and (name.retention is None or arrived < name.retention.total_seconds()):
        return ExpectedResult.ONE_JOB
    if look_up and found.exists:
        return ExpectedResult.ONE_JOB
    if not found.all_ended:
        return ExpectedResult.HELD
    if token and arrived < token.lifetime.total_seconds():
        return ExpectedResult.ONE_JOB
    if look_up:
        until = found.age + look_up.settling.total_seconds()
        if look_up.retention is None or until < look_up.retention.total_seconds():
            return ExpectedResult.ONE_JOB
    return ExpectedResult.HELD


Arranged: TypeAlias = "UnresolvedSubmission | ExpectedResult | frozenset[ExpectedResult] | None"


@dataclass(frozen=True)
class Case:
    """One case. `arrange(scene)` says what goes wrong; its answer is what an attempt then finds (None: no doubt arises), or how the case must
    end, whatever is declared.

    `needs`: the reason why it can't be tried in this scene, or an empty string.
    """

    name: str
    what: str
    arrange: "Callable[[CaseRun], Arranged]"
    needs: "Callable[[CaseRun], str]" = lambda _scene: ""

    @override
    def __str__(self) -> str:
        return self.name


def _undisturbed(_scene: "CaseRun") -> None:
    return None


def _crash_at(step: str, found: UnresolvedSubmission | None) -> "Callable[[CaseRun], UnresolvedSubmission | None]":
    def arrange(scene: "CaseRun") -> UnresolvedSubmission | None:
        scene.at(1, step, lambda process: process.kill())
        return found

    return arrange


def _crash_on_the_way(scene: "CaseRun") -> UnresolvedSubmission:
    """The request has left, its process dies, and it arrives."""

    def crash() -> None:
        scene.between(1).send_later(scene.pace.on_the_way)
        scene.process(1).kill()

    scene.at(1, "submit leaving", lambda _process: crash())
    return UnresolvedSubmission(exists=True)


def _at_once(scene: "CaseRun") -> None:
    """What the other side enforces holds between two requests too; what the adapter only looks up before it submits does not."""

    def submit() -> None:
        rounds = [scene.submit_at_once(CONCURRENT_HISTORIES) for _ in range(ROUNDS)]
        scene.checks.append(lambda: next((wrong for told in rounds if (wrong := _unlike_handles(told))), ""))

    scene.at(1, "submit leaving", lambda _process: submit())


def _unlike_handles(told: set[str]) -> str:
    if len(told) == 1:
        return ""
    return f"all who submit the same at once must be told the same handle; they were told {sorted(told) or 'none'}"


def _lose_the_request(scene: "CaseRun") -> UnresolvedSubmission:
    scene.fail_once(1, "submit leaving")
    return UnresolvedSubmission(exists=False)


def _lose_the_answer(scene: "CaseRun") -> UnresolvedSubmission:
    scene.fail_once(1, "submit accepted")
    return UnresolvedSubmission(exists=True)


def _lose_the_answer_while_it_lags(scene: "CaseRun") -> UnresolvedSubmission:
    scene.at(1, "submit accepted", lambda process: process.kill())
    scene.lag()
    return UnresolvedSubmission(exists=True)


def _too_slow(scene: "CaseRun") -> UnresolvedSubmission:
    """The request is given up, and arrives afterwards."""

    def give_up() -> None:
        between = scene.between(1)
        between.send_later(between.request_seconds + scene.pace.on_the_way)
        scene.process(1).sleep(between.request_seconds)
        raise TimeoutError("no answer within request_seconds")

    scene.at(1, "submit leaving", lambda _process: give_up())
    return UnresolvedSubmission(exists=True, age=10 + scene.request_seconds)


def _slow(scene: "CaseRun") -> None:
    scene.at(1, "submit leaving", lambda process: process.sleep(0.8 * scene.request_seconds))


def _down_while_submitting(scene: "CaseRun") -> UnresolvedSubmission:
    scene.out_of_order(from_step="submit leaving", seconds=scene.pace.outage)
    return UnresolvedSubmission(exists=False, age=10 + scene.pace.outage)


def _down_while_watching(scene: "CaseRun") -> None:
    scene.out_of_order(from_step="watching", seconds=scene.pace.outage)


def _fails_once_while_watching(scene: "CaseRun") -> None:
    scene.fail_once(1, "status leaving")


def _broken_once(how: Literal["error", "half", "lose"]) -> "Callable[[CaseRun], UnresolvedSubmission]":
    """The adapter must not say `Rejected`, but that nobody knows."""

    def arrange(scene: "CaseRun") -> UnresolvedSubmission:
        scene.break_down(Fault(how=how, on="submit", once=True))
        return UnresolvedSubmission(exists=how != "error")

    return arrange


def _broken_for_submissions(scene: "CaseRun") -> UnresolvedSubmission:
    fault = Fault(how="error", on="submit")
    scene.at(1, "submit leaving", lambda _process: scene.break_down(fault, scene.pace.outage))
    return UnresolvedSubmission(exists=False, age=10 + scene.pace.outage)


def _broken_for_look_ups(scene: "CaseRun") -> UnresolvedSubmission:
    """The adapter must not say None, but that it can't be told now."""

    def crash() -> None:
        scene.break_down(Fault(how="error", on="look-up"), scene.pace.outage)
        scene.process(1).kill()

    scene.at(1, "submit accepted", lambda _process: crash())
    return UnresolvedSubmission(exists=True, age=10 + scene.pace.outage)


def _broken_for_questions(scene: "CaseRun") -> None:
    """The adapter must not call the job failed or absent."""
    fault = Fault(how="error", on="status")
    scene.at(1, "watching", lambda _process: scene.break_down(fault, scene.pace.outage))


def _token_expired(scene: "CaseRun") -> UnresolvedSubmission:
    lifetime = scene.can.token.lifetime.total_seconds() if scene.can.token else 0
    scene.at(1, "after-intent", lambda process: process.kill())
    scene.before_main(2, lambda process: process.sleep(lifetime + 1))
    return UnresolvedSubmission(exists=False, age=lifetime + 1)


def _name_forgotten(scene: "CaseRun") -> UnresolvedSubmission:
    """The job that was made may have been forgotten with its name. A look-up that remembers for longer finds it."""
    retention = _name_retention_of(scene.can)
    scene.at(1, "submit accepted", lambda process: process.kill())
    scene.before_main(2, lambda process: process.sleep(retention + 1))
    look_up = scene.can.look_up
    remembers = look_up is not None and (look_up.retention is None or retention < look_up.retention.total_seconds())
    return UnresolvedSubmission(exists=remembers, age=retention + 1)


def _name_retention_of(can: Capabilities) -> float:
    """In seconds; 0 where no name is enforced, or for ever."""
    name = can.client_name
    return name.retention.total_seconds() if name and name.retention else 0.0


def _promises_of(can: Capabilities) -> list[float]:
    """For how long the other side keeps what it is asked by, in seconds, where that has an end."""
    kept = (
        can.client_name and can.client_name.retention,
        can.token and can.token.lifetime,
        can.look_up and can.look_up.retention,
    )
    return [time.total_seconds() for time in kept if time]


def _just_in_time(scene: "CaseRun") -> UnresolvedSubmission:
    """The next attempt comes when the promises are nearly over: what is promised for so long must still be kept."""
    wait = 0.9 * min(_promises_of(scene.can)) - scene.request_seconds - MARGIN_SECONDS
    scene.at(1, "submit accepted", lambda process: process.kill())
    scene.before_main(2, lambda process: process.sleep(wait))
    return UnresolvedSubmission(exists=True, age=wait + 10)


def _forgotten_before_it_was_found(scene: "CaseRun") -> UnresolvedSubmission:
    keeps = scene.can.look_up.retention if scene.can.look_up else None
    wait = keeps.total_seconds() + 1 if keeps else 0
    scene.at(1, "submit accepted", lambda process: process.kill())

    def come_late() -> None:
        scene.process(2).sleep(wait)
        scene.forget()

    scene.before_main(2, lambda _process: come_late())
    return UnresolvedSubmission(exists=False, age=wait + 10)


def _forgotten_while_watched(scene: "CaseRun") -> ExpectedResult:
    """A job that was there and is not known any more is never taken for a failed one."""

    def crash() -> None:
        scene.forget()
        scene.process(1).kill()

    scene.at(1, "watching", lambda _process: crash())
    return ExpectedResult.HELD


def _cancel_at(step: str) -> "Callable[[CaseRun], frozenset[ExpectedResult]]":
    """Where a cancelled job is gone (a deleted object), the next attempt can't tell that from one that got lost, and asks."""

    def arrange(scene: "CaseRun") -> frozenset[ExpectedResult]:
        scene.cancels = True
        scene.at(1, step, lambda process: process.kill())
        scene.checks.append(lambda: _not_cancelled(scene))
        if scene.other.count_running is not None:
            scene.checks.append(_goes_on(scene, scene.other.count_running))
        return frozenset(
            {ExpectedResult.ONE_JOB} if step == "before-cancel" else {ExpectedResult.ONE_JOB, ExpectedResult.HELD}
        )

    return arrange


def _not_cancelled(scene: "CaseRun") -> str:
    others = [status for status in scene.standings if not isinstance(status, Cancelled | NotFound)]
    return f"the job was cancelled, and the other side says of it: {others[0]}" if others else ""


def _goes_on(scene: "CaseRun", count_running: "Callable[[], int]") -> "Callable[[], str]":
    """What the adapter says of the job is its own word; how many run is the other side's."""
    clock = scene.world.clock
    clock.wait(lambda: count_running() == 0, QUIET_SECONDS)
    before = count_running()

    def check() -> str:
        if clock.wait(lambda: count_running() <= before, CANCELLED_SECONDS):
            return ""
        return f"the job was cancelled, and still runs: {count_running()} run over there, {before} ran before"

    return check


def _frozen_at(step: str, found: UnresolvedSubmission | None) -> "Callable[[CaseRun], UnresolvedSubmission | None]":
    """The node stops answering with the process in it, the attempt's end is presumed, and later the process goes on where it was."""

    def arrange(scene: "CaseRun") -> UnresolvedSubmission | None:
        scene.at(1, step, scene.freeze)
        return found

    return arrange


def _dead_with_its_node(step: str, found: UnresolvedSubmission) -> "Callable[[CaseRun], UnresolvedSubmission]":
    def arrange(scene: "CaseRun") -> UnresolvedSubmission:
        def die() -> None:
            scene.lose_node(scene.process(1))
            scene.process(1).kill()

        scene.at(1, step, lambda _process: die())
        return found

    return arrange


def _evicted(scene: "CaseRun") -> UnresolvedSubmission:
    def evict() -> None:
        scene.evict(scene.process(1))
        scene.process(1).kill()

    scene.at(1, "submit accepted", lambda _process: evict())
    return UnresolvedSubmission(exists=True)


def _digest_changed(scene: "CaseRun") -> None:
    scene.at(1, "watching", lambda process: process.kill())
    scene.requests[2] = scene.other.other_request

    def check() -> str:
        error = scene.process(2).error
        if isinstance(error, DigestChanged):
            return ""
        return f"attempt 2 asked for something else, and must end by DigestChanged; it ended by {error!r}"

    scene.checks.append(check)


def _state_api_down(scene: "CaseRun") -> None:
    """Nothing is submitted as long as the intent can't be stored."""

    def stop() -> None:
        jobs = scene.other.count_jobs()
        scene.stop_state_api(scene.pace.outage)
        scene.at(1, "submit leaving", lambda _process: scene.note_early(jobs))
        scene.checks.append(lambda: scene.early)

    scene.at(1, "before-intent", lambda _process: stop())


def _two_crashes(scene: "CaseRun") -> UnresolvedSubmission:
    scene.at(1, "submit accepted", lambda process: process.kill())
    scene.at(2, "after-intent", lambda process: process.kill())
    return UnresolvedSubmission(exists=True)


def _needs_name_or_token(scene: "CaseRun") -> str:
    return "" if scene.can.client_name or scene.can.token else "it declares neither a name nor a token"


def _needs_token(scene: "CaseRun") -> str:
    if scene.can.token is None:
        return "it declares no token"
    return scene.too_long(scene.can.token.lifetime.total_seconds(), "its token lives")


def _needs_a_name_with_an_end(scene: "CaseRun") -> str:
    if scene.can.client_name is None:
        return "it declares no name"
    if scene.can.client_name.retention is None:
        return "its names are kept for ever"
    return scene.too_long(_name_retention_of(scene.can), "its names are kept")


def _needs_an_end(scene: "CaseRun") -> str:
    promises = _promises_of(scene.can)
    if not promises:
        return "what it declares has no end"
    if min(promises) < 2 * scene.request_seconds:
        return "what it declares lasts no longer than a request"
    return scene.too_long(min(promises), "its promises last")


def _needs_lag(scene: "CaseRun") -> str:
    return "" if scene.can.look_up else "it declares no look-up"


def _needs_retention(scene: "CaseRun") -> str:
    if scene.other.forget is None:
        return "nothing makes the other side forget"
    if scene.can.look_up is None or scene.can.look_up.retention is None:
        return "it declares no end of what a look-up finds"
    retention = scene.can.look_up.retention
    name, token = scene.can.client_name, scene.can.token
    if (name and (name.retention is None or name.retention > retention)) or (token and token.lifetime > retention):
        return "its names or tokens are kept for longer than jobs"
    return scene.too_long(retention.total_seconds(), "a look-up finds jobs")


def _needs_fail(scene: "CaseRun") -> str:
    return "" if scene.other.fail else "nothing makes the other side fail"


def _needs_fail_and_look_up(scene: "CaseRun") -> str:
    return _needs_fail(scene) or _needs_lag(scene)


def _needs_a_lasting_job(scene: "CaseRun") -> str:
    return "" if scene.other.lasting_request is not None else "no job was given that lasts until it is cancelled"


def _needs_forget(scene: "CaseRun") -> str:
    return "" if scene.other.forget else "nothing makes the other side forget"


_NOTHING_THERE = UnresolvedSubmission(exists=False)
_THERE = UnresolvedSubmission(exists=True)
_FROZEN = UnresolvedSubmission(exists=False, all_ended=False)
_FROZEN_THERE = UnresolvedSubmission(exists=True, all_ended=False)

CASES: tuple[Case, ...] = (
    Case("undisturbed", "nothing goes wrong", _undisturbed),
    Case("before intent", "crash before the intent is stored", _crash_at("before-intent", None)),
    Case("intent lost", "crash when the intent is on its way to the state API", _crash_at("before POST intent", None)),
    Case(
        "intent answered",
        "crash when it is stored, before the response",
        _crash_at("after POST intent", _NOTHING_THERE),
    ),
    Case("after intent", "crash when the intent is stored", _crash_at("after-intent", _NOTHING_THERE)),
    Case("before submit", "crash right before the request", _crash_at("submit leaving", _NOTHING_THERE)),
    Case("request left", "crash with the request on its way; it arrives", _crash_on_the_way),
    Case("answer lost", "crash after the external system has accepted", _crash_at("submit accepted", _THERE)),
    Case("handle on its way", "crash before the handle is stored", _crash_at("before PUT handle", _THERE)),
    Case("handle stored", "crash when it is stored, before the response", _crash_at("after PUT handle", None)),
    Case("after handle", "crash after the handle was recorded", _crash_at("after-handle", None)),
    Case("watching", "crash while the job is watched", _crash_at("watching", None)),
    Case("job ended", "crash before the outcome is recorded", _crash_at("before-outcome", None)),
    Case("outcome recorded", "crash after it is recorded, before the task completes", _crash_at("after-outcome", None)),
    Case("before cancel", "crash before the job is cancelled", _cancel_at("before-cancel"), _needs_a_lasting_job),
    Case(
        "during cancel",
        "crash after the external system has cancelled it",
        _cancel_at("cancel accepted"),
        _needs_a_lasting_job,
    ),
    Case("after cancel", "crash after the job was cancelled", _cancel_at("after-cancel"), _needs_a_lasting_job),
    Case("two crashes", "the response is lost, and the next attempt crashes too", _two_crashes),
    Case("evicted", "evicted after the external system has accepted", _evicted),
    Case("at once", "several processes submit the same job at once", _at_once, _needs_name_or_token),
    Case("request failed", "an error, and the request did not arrive", _lose_the_request),
    Case("answer failed", "an error, and the job was made", _lose_the_answer),
    Case("slow", "the external system takes nearly as long as it may", _slow),
    Case("too slow", "the request times out, and arrives afterwards", _too_slow),
    Case("down for submit", "the external system is down during the submission", _down_while_submitting),
    Case("down for status", "the external system is down while the job runs", _down_while_watching),
    Case("one error", "the external system returns one error for the status", _fails_once_while_watching),
    Case("500, not made", "a submission gets 500, and made no job", _broken_once("error"), _needs_fail),
    Case("500, made", "a submission gets 500, and made the job", _broken_once("half"), _needs_fail),
    Case(
        "cut, made", "the job is made, and the connection is cut before the response", _broken_once("lose"), _needs_fail
    ),
    Case("500 on submit", "submissions get 500 for a while", _broken_for_submissions, _needs_fail),
    Case(
        "500 on look-up",
        "the response is lost, and lookups get 500 for a while",
        _broken_for_look_ups,
        _needs_fail_and_look_up,
    ),
    Case("500 on status", "requests for the status get 500 for a while", _broken_for_questions, _needs_fail),
    Case("token expired", "the next attempt starts after the token has expired", _token_expired, _needs_token),
    Case(
        "name forgotten",
        "the next attempt starts after the name is forgotten",
        _name_forgotten,
        _needs_a_name_with_an_end,
    ),
    Case("just in time", "the next attempt starts shortly before a guarantee expires", _just_in_time, _needs_an_end),
    Case(
        "look-up lags",
        "the job is not found until the settling time is over",
        _lose_the_answer_while_it_lags,
        _needs_lag,
    ),
    Case(
        "forgotten unseen",
        "the job is forgotten before it is looked up",
        _forgotten_before_it_was_found,
        _needs_retention,
    ),
    Case("forgotten", "the job is forgotten while it is watched", _forgotten_while_watched, _needs_forget),
    Case(
        "frozen in submit",
        "frozen before the request leaves; its end is presumed",
        _frozen_at("submit leaving", _FROZEN),
    ),
    Case("frozen after", "frozen after the external system has accepted", _frozen_at("submit accepted", _FROZEN_THERE)),
    Case("frozen before intent", "frozen before the intent is stored", _frozen_at("before-intent", None)),
    Case("frozen after intent", "frozen when the intent is stored", _frozen_at("after-intent", _FROZEN)),
    Case("frozen with handle", "frozen before the handle is recorded", _frozen_at("before PUT handle", _FROZEN_THERE)),
    Case("frozen watching", "frozen while the job is watched", _frozen_at("watching", None)),
    Case("node dies", "dead with its node before the request", _dead_with_its_node("submit leaving", _FROZEN)),
    Case(
        "node dies after",
        "dead with its node after the external system has accepted",
        _dead_with_its_node("submit accepted", _FROZEN_THERE),
    ),
    Case("digest changed", "the next attempt has another request", _digest_changed),
    Case("state API down", "the state API is down at the moment of submission", _state_api_down),
)
"""All of them, in the order of a job's life."""
