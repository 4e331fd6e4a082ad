"""Operators with a defect, which the crash tests must detect.

Run `REATTACH_BREAK=NAME pytest tests/crash`.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec

from reattach.planner.decide import decide
from reattach.planner.plan import CreatePod, Decision, Observed, Plan, PodDefaults
from reattach.planner.pods import pod_creation
from reattach.process.__main__ import main


@dataclass
class WaitAgain:
    """Starts a wait again that another process recorded, so that a restart repeats the wait."""

    recorded: set[datetime] = field(default_factory=set)

    def decide(self, observed: Observed, settings: PodDefaults, now: datetime) -> Decision:
        status, until = observed.taskrun.status, observed.taskrun.status.next_attempt_time
        if until is not None and until not in self.recorded:
            last = status.attempts[-1].finish_time or now
            again = now.replace(microsecond=0) + (until - last)
            self.recorded.add(again)
            return Plan(status=msgspec.structs.replace(status, next_attempt_time=again))
        plan = decide(observed, settings, now)
        if isinstance(plan, Plan) and plan.status is not None and plan.status.next_attempt_time is not None:
            self.recorded.add(plan.status.next_attempt_time)
        return plan


@dataclass
class WaitInMemory:
    """Starts a wait again that another process recorded, and does not record that."""

    waits: dict[datetime, datetime] = field(default_factory=dict)

    def decide(self, observed: Observed, settings: PodDefaults, now: datetime) -> Decision:
        status, recorded = observed.taskrun.status, observed.taskrun.status.next_attempt_time
        if recorded is not None:
            last = status.attempts[-1].finish_time or now
            again = self.waits.setdefault(recorded, now + (recorded - last))
            if now < again:
                return Plan(requeue_at=again)
        plan = decide(observed, settings, now)
        if isinstance(plan, Plan) and plan.status is not None and plan.status.next_attempt_time is not None:
            self.waits[plan.status.next_attempt_time] = plan.status.next_attempt_time
        return plan


@dataclass
class CountFromStatus:
    """Numbers attempts from the status, and ignores pods whose creation it does not remember.

    After a lost response, it creates a second pod.
    """

    made: set[str] = field(default_factory=set)

    def decide(self, observed: Observed, settings: PodDefaults, now: datetime) -> Decision:
        listed = {attempt.pod_name for attempt in observed.taskrun.status.attempts}
        seen = tuple(pod for pod in observed.pods if pod.metadata.name in listed | self.made)
        plan = decide(replace(observed, pods=seen), settings, now)
        if not isinstance(plan, Plan) or not plan.actions or not isinstance(plan.actions[-1], CreatePod):
            return plan
        number = plan.actions[-1].attempt + len(observed.pods) - len(seen)
        creation = pod_creation(observed.taskrun, number, settings)
        self.made.add(creation.name)
        return replace(plan, actions=(*plan.actions[:-1], creation))


BREAKS = {
    "wait-again": WaitAgain().decide,
    "wait-in-memory": WaitInMemory().decide,
    "count-from-status": CountFromStatus().decide,
}

if __name__ == "__main__":
    sys.exit(main(None, BREAKS[os.environ["REATTACH_BREAK"]]))
