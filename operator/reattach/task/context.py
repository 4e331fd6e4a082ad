"""`reattach.task()` and `reattach.run()`: the start and the end of a task.

A task completes when its block ends, or when its function returns. The state records the
completion, and the record is final. An exception, also that of `sys.exit(0)`, completes nothing.
The SDK then writes the reason into the termination message, and the operator decides about a retry.
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
from reattach.task import log
from reattach.task.client import Call, Client, Timing
from reattach.task.connection import StateApiConnection
from reattach.task.external_job import ExternalJob
from reattach.task.job_client import JobClient
from reattach.task.jobs import Jobs
from reattach.task.settings import PATIENCE_SECONDS, TaskSettings, from_environment
from reattach.task.state import State
from reattach.task.submission import JobRequest, SubmissionProcess
from reattach.task.termination import TerminationHandler
from reattach.task.value_checks import result_text_of

logger = logging.getLogger("reattach")

T = TypeVar("T")


class Task:
    """The attempt that this process runs. Made by `task()` and `run()`.

    namespace, name: identify the TaskRun.
    attempt: number of the attempt, from 1; a number is never used twice.
    state: durable keys of the TaskRun.
    jobs: the single steps for external jobs; most tasks need only `submit_once`.
    completed: whether the completion is recorded.
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
        """Record that the task is complete.

        `result` (JSON of at most 4 KiB, or None for no result) becomes `status.result`. The record
        is final: the state can't change any more, and a later failure of the pod has no effect.

        Raises:
            InvalidValue: `result` is not JSON, or too large.
            AlreadyCompleted: the task is complete with another result.
            JobsOpen: an external job is open and not detached.
        """
        self._client.call(_complete(result))
        self.completed = True

    async def acomplete(self, result: Any = None) -> None:
        """`complete` for async code."""
        await self._client.acall(_complete(result))
        self.completed = True

    def submit_once(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """Submit an external job under `key`, or return the job that an attempt submitted before.

            job = task.submit_once("load", adapter, {"entrypoint": "python load.py"})
            return job.wait()

        There are never two jobs. While the state API is unavailable, the call waits and does not
        submit. If the SDK can't determine whether an earlier submission arrived,
        `spec.submission.onUnknown` decides.

        key: 1 to 128 characters.
        detached: the task may complete before the job ends.

        Raises:
            JobFailed: the external system rejected the job for good.
            DigestChanged: the job under this key is open or succeeded, and has another request.
            PermanentFailure, Held: it is unknown whether the job was submitted; see `docs/sdk.md`.
        """
        return self._submit_once(key, adapter, request, detached=detached)

    async def asubmit_once(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """`submit_once` for async code. Cancelling it does not interrupt a started submission."""
        return await self._in_thread(key, adapter, request, detached=detached)

    def resubmit(self, key: str, adapter: Adapter, request: Any, *, detached: bool = False) -> ExternalJob:
        """Submit the job under `key` again, as its next generation, after the newest one is over.

        The request may differ from that of the newest generation.

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
            acquired = SubmissionProcess(self._job_client, wanted, is_abandoned).run(new_generation=new_generation)
        return ExternalJob(self._job_client, wanted, acquired)

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
    """Context manager that opens the state and returns the `Task`."""

    def __init__(
        self,
        settings: TaskSettings,
        *,
        transport: httpx.MockTransport | None = None,
        timing: Timing | None = None,
        environment: MutableMapping[str, str] = os.environ,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._session = settings.session or str(uuid.uuid4())
        # A child of the process that opened the state has the same session, and does not complete
        # the task.
        self._is_child = settings.session is not None
        self._environment = environment
        self._termination = TerminationHandler(settings.termination_log, end_process)
        self._connection = StateApiConnection(settings, self._session, transport)
        self._client = Client(
            self._connection, settings.patience, self._termination.on_attempt_over, timing or Timing()
        )
        self._job_client = JobClient(self._client, self._termination)
        self._task = Task(settings, self._client, self._job_client)

    def __enter__(self) -> Task:
        self._termination.install_handler()
        try:
            if not self._is_child:
                self._on_open(self._client.call(_open(self._session)))
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
                if self._must_complete():
                    self._task.complete()
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._leave(error)
            self._connection.close()

    async def __aenter__(self) -> Task:
        self._termination.install_handler()
        try:
            if not self._is_child:
                self._on_open(await self._client.acall(_open(self._session)))
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
                if self._must_complete():
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
                result = asyncio.run(self._await_and_close(result))
            self._check_not_over()
            if self._must_complete():
                opened.complete(result)
            return result

    async def _await_and_close(self, result: Awaitable[T]) -> T:
        try:
            return await result
        finally:
            await self._connection.aclose()

    def _on_open(self, opened: OpenResponse) -> None:
        self._job_client.opened_at = self._client.timing.clock()
        self._environment[ENV_SESSION] = self._session
        logger.info("Attempt %d of %s/%s opened its state.", opened.attempt, opened.namespace, opened.taskrun)

    def _check_not_over(self) -> None:
        """Raise the error that ended the attempt, if the task caught it."""
        self._termination.check()

    def _must_complete(self) -> bool:
        return not self._task.completed and not self._is_child

    def _leave(self, error: BaseException | None) -> None:
        self._termination.remove_handler()
        if error is not None:
            self._termination.log(error)
        if self._is_child:
            # The process that opened the state reports how the attempt ends. It may continue
            # without this child.
            return
        self._environment.pop(ENV_SESSION, None)
        if error is not None:
            self._termination.write_message_of(error)


def task(*, patience: float = PATIENCE_SECONDS) -> TaskContext:
    """Return a context manager that opens the state of the TaskRun, for `with` or `async with`.

        with reattach.task() as task:
            job_id = task.state.get("job_id")

    The end of the block completes the task, without a result unless you call
    `task.complete(result)`. An exception does not complete the task. If the environment contains
    the session of a parent process, this process uses that session and does not complete the task.

    The SDK logs to the logger `reattach`, which prints to stderr unless you configure logging.

    patience: seconds for which a call waits for an unavailable state API.

    Raises:
        NotInPod: this is not the container of a TaskRun.
        AttemptOver: raised on entry, if this attempt must not run any more.
    """
    log.configure()
    return TaskContext(from_environment(os.environ).with_patience(patience))


@overload
def run(main: Callable[[Task], Awaitable[T]], *, patience: float = ...) -> T: ...
@overload
def run(main: Callable[[Task], T], *, patience: float = ...) -> T: ...
def run(main: Callable[[Task], Any], *, patience: float = PATIENCE_SECONDS) -> Any:
    """Run `main(task)`, a plain or an async function, as the task, and return its result.

    The result (JSON of at most 4 KiB) becomes `status.result`. `run` does not catch exceptions of
    `main`. If your code does not either, the process prints the traceback and exits with code 1.

    Call it under `if __name__ == "__main__":`, because a child that `multiprocessing` spawns
    imports your program and would call `main` again.
    """
    return task(patience=patience).run(main)


def _open(session: str) -> Call[OpenResponse]:
    return Call("POST", "/v1/open", OpenResponse, OpenRequest(session=session))


def _complete(result: Any) -> Call[None]:
    request = CompleteRequest() if result is None else CompleteRequest(result=result_text_of(result))
    return Call("POST", "/v1/complete", type(None), request)
