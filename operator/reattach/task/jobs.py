"""`task.jobs`: the steps of `submit_once` one by one, for external systems that have no adapter.

    response = task.jobs.intent("load", adapter="ftp", digest="sha256:…")  # stored on return
    job = response.job
    match response.decision:
        case "Submit":    task.jobs.record("load", job.generation, submit(job.token))
        case "Reattach":  handle = job.handle
        case "Over":      …  job.state, job.result
        case "Resolve":   …  it may have been submitted: look it up, or call `intent` with `again`
    …
    task.jobs.outcome("load", job.generation, "Succeeded", result)

Submit only if the decision is `Submit`. Each method has an async twin with an `a` in front.
"""

from typing import Any

from reattach.api.messages import Grounds, IntentResponse, Job, JobList
from reattach.task.client import Call
from reattach.task.job_client import JobClient, Origin, OutcomeState, outcome_call, read_call


class Jobs:
    """The external jobs of one TaskRun.

    All methods may raise the errors of `reattach.errors`; only special ones are named here.
    """

    def __init__(self, client: JobClient) -> None:
        self._client = client

    def intent(
        self,
        key: str,
        *,
        adapter: str,
        digest: str,
        token_seconds: int | None = None,
        detached: bool = False,
        again: Grounds | None = None,
        new_generation: bool = False,
    ) -> IntentResponse:
        """Store the intent to submit a job under `key`, and return the decision.

        key: 1 to 128 characters.
        adapter: the kind of external system, 1 to 63 characters.
        digest: digest of the request, at most 128 characters.
        `reattach.api.messages.IntentRequest` describes the other arguments.

        Raises:
            DigestChanged: another request under the key of a job that is open or succeeded.
            JobsOpen: `new_generation` is set, and the newest generation is open.
            GroundsRefused: `again` is set, and the stored state contradicts it.
        """
        return self._client.call(
            self._client.intent_call(
                key,
                adapter=adapter,
                digest=digest,
                token_seconds=token_seconds,
                detached=detached,
                again=again,
                new_generation=new_generation,
            )
        )

    async def aintent(
        self,
        key: str,
        *,
        adapter: str,
        digest: str,
        token_seconds: int | None = None,
        detached: bool = False,
        again: Grounds | None = None,
        new_generation: bool = False,
    ) -> IntentResponse:
        """`intent` for async code."""
        return await self._client.acall(
            self._client.intent_call(
                key,
                adapter=adapter,
                digest=digest,
                token_seconds=token_seconds,
                detached=detached,
                again=again,
                new_generation=new_generation,
            )
        )

    def record(
        self, key: str, generation: int, handle: str, *, url: str | None = None, origin: Origin = "Submitted"
    ) -> None:
        """Store the handle (1 byte to 1 KiB) that the external system gave the job.

        A fenced attempt may still store the handle for an intent of its own process.

        Raises:
            HandleDiffers: another handle is recorded; this one is stored as a stray.
            JobOver: the job has ended with another outcome.
        """
        self._client.write(self._client.handle_call(key, generation, handle, url, origin))

    async def arecord(
        self, key: str, generation: int, handle: str, *, url: str | None = None, origin: Origin = "Submitted"
    ) -> None:
        """`record` for async code."""
        await self._client.awrite(self._client.handle_call(key, generation, handle, url, origin))

    def outcome(
        self,
        key: str,
        generation: int,
        state: OutcomeState,
        result: Any = None,
        *,
        message: str = "",
        hold: bool = False,
        given_up: bool = False,
    ) -> None:
        """Store the state of the job.

        `Succeeded` (with `result`, JSON of at most 4 KiB), `Failed` and `Cancelled` are final.
        `reattach.api.messages.OutcomeRequest` describes `hold` and `given_up`.

        Raises:
            JobOver: the job has ended with another outcome.
        """
        call = outcome_call(key, generation, state, result, message=message, hold=hold, given_up=given_up)
        self._client.write(call)

    async def aoutcome(
        self,
        key: str,
        generation: int,
        state: OutcomeState,
        result: Any = None,
        *,
        message: str = "",
        hold: bool = False,
        given_up: bool = False,
    ) -> None:
        """`outcome` for async code."""
        call = outcome_call(key, generation, state, result, message=message, hold=hold, given_up=given_up)
        await self._client.awrite(call)

    def get(self, key: str, generation: int | None = None) -> Job | None:
        """Return a job, by default its newest generation, or None if no intent was stored."""
        return self._client.read(read_call(key, generation))

    async def aget(self, key: str, generation: int | None = None) -> Job | None:
        """`get` for async code."""
        return await self._client.aread(read_call(key, generation))

    def list(self) -> tuple[Job, ...]:
        """Return all generations of all jobs, in the order of their intents."""
        return self._client.call(Call("GET", "/v1/jobs", JobList)).items

    async def alist(self) -> tuple[Job, ...]:
        """`list` for async code."""
        return (await self._client.acall(Call("GET", "/v1/jobs", JobList))).items
