"""Jobs that a cleanup session adopts, because no attempt opened the state before it. Pure."""

from datetime import datetime

import msgspec

from reattach.api.state import JobOrigin, JobState
from reattach.api.taskrun import adoptions_at_end
from reattach.state.codec import DurableState
from reattach.state.job_operations import check_job_key, check_new_job_key, checked_adoption
from reattach.state.job_record import JobRecord, check_room, token_of
from reattach.state.operations import Session
from reattach.state.owner import Owner


def adopt_at_end(state: DurableState, owner: Owner, session: Session, now: datetime) -> DurableState:
    """Return the new state of a cancelled TaskRun with the jobs of `spec.adopt` that it ends."""
    spec = owner.spec
    jobs = dict(state.jobs)
    for adoption in adoptions_at_end(spec.adopt, cancel=spec.cancel, adopted=spec.cleanup.adopted):
        check_job_key(adoption.key)
        check_new_job_key(adoption.key)
        record = JobRecord(
            key=adoption.key,
            generation=1,
            adapter=adoption.adapter or "",
            token=token_of(owner.token_seed, adoption.key, 1),
            digest="",  # no request: the state is sealed, so no attempt can submit under the key
            state=JobState.ACTIVE,
            intended_at=now,
            intended_by_attempt=session.attempt,
            handle=checked_adoption(adoption.handle, "spec.adopt"),
            origin=JobOrigin.ADOPTED,
            recorded_at=now,
            session=session.id,
        )
        jobs[record.name] = record
    check_room(jobs)
    return msgspec.structs.replace(state, jobs=jobs)
