"""`reattach.task()` and `reattach.run()`: how a task begins, and how it ends.

A task is done when its block is left, or its function returns. That is recorded in the state, and the record is final. Leaving by an
exception (`sys.exit(0)` among them) records nothing: the operator is told why in the termination message, and decides whether to try again.
"""

import asyncio
import inspect
import logging
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, TypeVar, overload

import httpx

from reattach.adapters.base import Adapter
from reattach.api.messages import CompleteRequest, OpenRequest, OpenResponse
from reattach.api.names import ENV_SESSION
from reattach.task.client import Call, Client, Timing
from reattach.task.connection import StateApiConnection
from reattach.task.external_job import ExternalJob
from reattach.task.job_client import JobClient
from reattach.task.jobs import Jobs
from reattach.task.log import show
from reattach.task.settings import PATIENCE_SECONDS, TaskSettings, from_environment
from reattach.task.state import State
from reattach.task.submission import JobRequest, SubmissionProcess
from reattach.task.termination import TerminationHandler
from reattach.task.value_checks import result_text_of

logger = logging.getLogger("reattach")

T = TypeVar("T")


class Task:
    """The attempt that this process is. Made by `task()` and `run()`.

    namespace, name: of the TaskRun.
    attempt: its number, from 1; a number is never used twice.
    state: the TaskRun's durable keys.
    jobs: its external jobs, step by step; `submit_once` is what most tasks want.
    completed: whether completion is recorded.
    """

    def __init__(self, settings: TaskSettings, client: Client, job_client: JobClient) -> None:
        self.namespace = settings.namespace
        self.name = settings.taskrun
        self.attempt = settings.attempt
        self.state = State(client)
        self.jobs = Jobs(job_client)
        self.completed = False
        self._client = client
        self._job_client = job_client

    def complete(self, result: Any = None) -> None:
        """Record that the task is done; `result` (JSON of at most 4 KiB, None: nothing) becomes `status.result`. Final: the state can't be
        changed any more, and what happens to the pod from now on changes nothing.

        Raises:
            InvalidValue: `result` is not JSON, or too large.
            AlreadyCompleted: with another result.
            JobsOpen: an external job is open and not detached.
        """
        self._client.call(_complete(result))
        self.completed = True

    async def acomplete(self, result: Any = None) -> None:
        """`complete` for async code."""
        await self._client.acall(_complete(result))
        self.completed = True

    def submit_once(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """The external job under `key` (1 to 128 characters): the one that this attempt or an earlier one submitted, or a new one.

            job = task.submit_once("load", adapter, {"entrypoint": "python load.py"})
            return job.wait()

        Never two of them. While the state API is away, nothing is submitted: the call waits. Where nobody can tell whether an earlier
        submission arrived, `spec.submission.onUnknown` counts. `detached`: the task may be done before the job is.

        Raises:
            JobFailed: the other side refused the job for good.
            DigestChanged: the job under this key is open or succeeded, and was made from another request.
            PermanentFailure, Held: it can't be known whether it was submitted; see `docs/sdk.md`.
        """
        return self._submit_once(key, adapter, request, detached=detached)

    async def asubmit_once(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """`submit_once` for async code. Cancelling it never leaves a submission half done: what is under way is finished."""
        return await self._in_thread(key, adapter, request, detached=detached)

    def resubmit(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """The job under `key` once more, as its next generation, although the newest one is over; that may have had another request.

        Raises:
            JobsOpen: the newest generation is open.
        """
        return self._submit_once(key, adapter, request, detached=detached, new_generation=True)

    async def aresubmit(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """`resubmit` for async code."""
        return await self._in_thread(key, adapter, request, detached=detached, new_generation=True)

    def _submit_once(
        self,
        key: str,
        adapter: Adapter,
        request: Any,
        *,
        detached: bool,
        new_generation: bool = False,
        is_abandoned: Callable[[], bool] = lambda: False,
    ) -> ExternalJob:
        wanted = JobRequest(key, adapter, request, detached, self.namespace, self.name, self.attempt)
        with self._job_client.lock_of(key):
            taken = SubmissionProcess(self._job_client, wanted, is_abandoned).run(new_generation=new_generation)
        return ExternalJob(self._job_client, wanted, taken)

    async def _in_thread(
        self, key: str, adapter: Adapter, request: Any, *, detached: bool, new_generation: bool = False
    ) -> ExternalJob:
        abandoned = threading.Event()
        try:
            return await asyncio.to_thread(
                self._submit_once,
                key,
                adapter,
                request,
                detached=detached,
                new_generation=new_generation,
                is_abandoned=abandoned.is_set,
            )
        except asyncio.CancelledError:
            abandoned.set()
            raise


class TaskContext:
    """What `task()` returns: enter it by `with` or `async with` to open the state and get the `Task`."""

    def __init__(
        self,
        settings: TaskSettings,
        *,
        transport: httpx.MockTransport | None = None,
        waits: Timing | None = None,
        environment: MutableMapping[str, str] = os.environ,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._session = settings.session or str(uuid.uuid4())
        # A child of the process that opened the state: it works under the same session, and its end is not the task's.
        self._is_child = settings.session is not None
        self._environment = environment
        self._ending = TerminationHandler(settings.termination_log, end_process)
        self._connection = StateApiConnection(settings, self._session, transport)
        self._client = Client(self._connection, settings.patience, self._ending.on_attempt_over, waits or Timing())
        self._job_client = JobClient(self._client, self._ending)
        self._task = Task(settings, self._client, self._job_client)

    def __enter__(self) -> Task:
        self._ending.listen()
        try:
            if not self._is_child:
                self._opened(self._client.call(_open(self._session)))
        except BaseException as error:
            self._leave(error)
            self._connection.close()
            raise
        return self._task

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._check_not_over()
                if self._completes():
                    self._task.complete()
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._leave(error)
            self._connection.close()

    async def __aenter__(self) -> Task:
        self._ending.listen()
        try:
            if not self._is_child:
                self._opened(await self._client.acall(_open(self._session)))
        except BaseException as error:
            self._leave(error)
            await self._connection.aclose()
            raise
        return self._task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._check_not_over()
                if self._completes():
                    await self._task.acomplete()
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._leave(error)
            await self._connection.aclose()

    def run(self, main: Callable[[Task], Any]) -> Any:
        """See `reattach.run`."""
        with self as opened:
            result = main(opened)
            if inspect.isawaitable(result):
                result = asyncio.run(self._awaited(result))
            self._check_not_over()
            if self._completes():
                opened.complete(result)
            return result

    async def _awaited(self, result: Awaitable[T]) -> T:
        try:
            return await result
        finally:
            await self._connection.aclose()

    def _opened(self, opened: OpenResponse) -> None:
        self._job_client.opened_at = self._client.waits.clock()
        self._environment[ENV_SESSION] = self._session
        logger.info("Attempt %d of %s/%s opened its state.", opened.attempt, opened.namespace, opened.taskrun)

    def _check_not_over(self) -> None:
        """An attempt that was told to end, by SIGTERM or the state API, is never a success, whatever its code caught."""
        self._ending.check()

    def _completes(self) -> bool:
        return not self._task.completed and not self._is_child

    def _leave(self, error: BaseException | None) -> None:
        self._ending.stop_listening()
        if error is not None:
            self._ending.log(error)
        if self._is_child:
            # How the attempt ends is for the process to say that opened the state; it may go on without this one.
            return
        self._environment.pop(ENV_SESSION, None)
        if error is not None:
            self._ending.tell(error)


def task(*, patience: float = PATIENCE_SECONDS) -> TaskContext:
    """Open the state of the TaskRun whose attempt this process is; use it by `with` or `async with`.

        with reattach.task() as task:
            job_id = task.state.get("job_id")

    Leaving the block normally completes the task, without a result unless `task.complete(result)` was called in it; leaving it by an
    exception does not. Where the environment has the session of a parent process, that is used: such a child does not complete.

    `patience`: for how many seconds a call waits for an absent state API before it raises `Unavailable`.

    What happens is logged to the logger `reattach`; it is shown on stderr unless your own logging is set up.

    Raises:
        NotInPod: this is not the container of a TaskRun.
        AttemptOver: on entering, if this attempt must not run any more.
    """
    show()
    return TaskContext(from_environment(os.environ).with_timeouts(patience))


@overload
def run(main: Callable[[Task], Awaitable[T]], *, patience: float = ...) -> T: ...
@overload
def run(main: Callable[[Task], T], *, patience: float = ...) -> T: ...
def run(main: Callable[[Task], Any], *, patience: float = PATIENCE_SECONDS) -> Any:
    """Run `main(task)`, a plain or an async function, as the task; what it returns (JSON of at most 4 KiB) is the result, and is returned.

    An exception of `main` goes on to the caller: with nothing around `run`, the process prints the traceback and exits with 1.

    Call it under `if __name__ == "__main__":`. A child that `multiprocessing` spawns imports your program, and would run `main` once more.
    """
    return task(patience=patience).run(main)


def _open(session: str) -> Call[OpenResponse]:
    return Call("POST", "/v1/open", OpenResponse, OpenRequest(session=session))


def _complete(result: Any) -> Call[None]:
    request = CompleteRequest() if result is None else CompleteRequest(result=result_text_of(result))
    return Call("POST", "/v1/complete", type(None), request)
