"""`reattach.task()` and `reattach.run()`: the start and the end of a task.

A task completes when its block ends, or when its function returns. The state records the
completion, and the record is final. An exception, also that of `sys.exit(0)`, completes nothing.
The SDK then writes the reason into the termination message, and the operator decides about a retry.
`PermanentFailure`, `RetryLater` and `NotReady` are reported to the state API first.

In a cleanup attempt, the same program starts, and `task()` and `run()` clean up instead: the task's
code does not run, and the process ends.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar, overload

import httpx

from reattach.adapters.base import Adapter
from reattach.api.messages import CompleteRequest, EndRequest, OpenRequest, OpenResponse
from reattach.api.names import ENV_SESSION
from reattach.api.taskrun import AttemptPurpose
from reattach.errors import AttemptOver, CleanupOnly, InvalidResult, InvalidValue, ProtocolError
from reattach.task import log
from reattach.task.cleanup import (
    CleanupHandler,
    CleanupRegistration,
    CleanupResult,
    CleanupStage,
    CleanupTask,
    clean_up,
)
from reattach.task.client import Call, Client, Timing
from reattach.task.connection import StateApiConnection
from reattach.task.end_report import EndReporter, end_of
from reattach.task.external_job import ExternalJob
from reattach.task.invalid_result import describe_invalid_result, describe_value
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
        self._acquired: list[ExternalJob] = []

    def complete(self, result: Any = None) -> None:
        """Record that the task is complete.

        `result` (JSON of at most 4 KiB, or None for no result) becomes `status.result`. The record
        is final: the state can't change any more, and a later failure of the pod has no effect.

        Raises:
            InvalidResult: `result` is not JSON, or too large.
            AlreadyCompleted: the task is complete with another result.
            JobsOpen: an external job is open and not detached.
        """
        self._client.call(self._completion_of(result))
        self.completed = True

    async def acomplete(self, result: Any = None) -> None:
        """`complete` for async code."""
        await self._client.acall(self._completion_of(result))
        self.completed = True

    def _completion_of(self, result: Any) -> Call[None]:
        try:
            request = CompleteRequest() if result is None else CompleteRequest(result=result_text_of(result))
        except InvalidValue as error:
            logger.error("This result can't be stored: %s", describe_value(result))  # noqa: TRY400 -- the next line raises
            jobs = (acquired.job for acquired in self._acquired)
            raise InvalidResult(describe_invalid_result(str(error), jobs)) from None
        return Call("POST", "/v1/complete", type(None), request)

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
        job = ExternalJob(self._job_client, wanted, acquired)
        self._acquired.append(job)
        return job

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
        adapters: Iterable[Adapter] = (),
        on_cleanup: CleanupHandler | None = None,
        transport: httpx.MockTransport | None = None,
        timing: Timing | None = None,
        environment: MutableMapping[str, str] = os.environ,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._settings = settings
        self._registration = CleanupRegistration.of(adapters, on_cleanup)
        self._session = settings.session or str(uuid.uuid4())
        # A child of the process that opened the state has the same session, and does not complete
        # the task.
        self._is_child = settings.session is not None
        self._environment = environment
        self._termination = TerminationHandler(
            settings.termination_log,
            end_process,
            "The next cleanup attempt continues." if settings.is_cleanup else "External jobs keep running.",
        )
        self._connection = StateApiConnection(settings, self._session, transport)
        self._client = Client(
            self._connection, settings.patience, self._termination.on_attempt_over, timing or Timing()
        )
        self._job_client = JobClient(self._client, self._termination)
        self._task = Task(settings, self._client, self._job_client)

    def __enter__(self) -> Task:
        self._termination.install_handler()
        if self._settings.is_cleanup:
            self._clean_up()
        try:
            if not self._is_child:
                self._on_open(self._client.call(self._open_call()))
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
            self._report_end(error)
            self._leave(error)
            self._connection.close()

    async def __aenter__(self) -> Task:
        self._termination.install_handler()
        if self._settings.is_cleanup:
            await self._aclean_up()
        try:
            if not self._is_child:
                self._on_open(await self._client.acall(self._open_call()))
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
            await self._areport_end(error)
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

    # -- cleanup ----

    def _clean_up(self) -> NoReturn:
        """Clean up, and end the process."""
        error: BaseException | None = None
        try:
            self._check_registered()
            self._on_open(self._client.call(self._open_call()))
            results, errors = clean_up(self._job_client, self._settings, self._registration.adapters)
            with _exit_zero_as_return():
                handled = self._call_handler(results)
                if inspect.isawaitable(handled):
                    asyncio.run(self._await_and_close(handled))
            self._end_cleanup(results, errors)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._report_end(error)
            self._leave(error)
            self._connection.close()
        raise SystemExit(0)

    async def _aclean_up(self) -> NoReturn:
        """`_clean_up` for async code."""
        error: BaseException | None = None
        try:
            self._check_registered()
            self._on_open(await self._client.acall(self._open_call()))
            results, errors = await asyncio.to_thread(
                clean_up, self._job_client, self._settings, self._registration.adapters
            )
            with _exit_zero_as_return():
                handled = self._call_handler(results)
                if inspect.isawaitable(handled):
                    await handled
            self._end_cleanup(results, errors)
        except BaseException as failure:
            error = failure
            raise
        finally:
            await self._areport_end(error)
            self._leave(error)
            await self._connection.aclose()
        raise SystemExit(0)

    def _check_registered(self) -> None:
        if self._is_child:
            self._refuse("this process is a child of the process that cleans up")
        if not self._registration:
            self._refuse(
                "REATTACH_PHASE is cleanup, and the task registered nothing to clean up with: pass `adapters` or"
                " `on_cleanup` to reattach.run or reattach.task"
            )

    def _refuse(self, why: str) -> NoReturn:
        refused = CleanupOnly(f"{why}. A cleanup attempt does not run the task")
        self._termination.on_attempt_over(refused)
        raise refused

    def _call_handler(self, results: tuple[CleanupResult, ...]) -> Any:
        """Call the handler. Return what the caller must await, or anything else."""
        self._check_not_over()
        if self._registration.on_cleanup is None:
            return None
        self._job_client.report_step(CleanupStage.BEFORE_HANDLER)
        logger.info("Calling on_cleanup.")
        return self._registration.on_cleanup(CleanupTask(self._settings, self._task.state, self._job_client, results))

    def _end_cleanup(self, results: tuple[CleanupResult, ...], errors: list[Exception]) -> None:
        self._check_not_over()
        self._job_client.report_step(CleanupStage.AFTER_HANDLER)
        if errors:
            failed = ", ".join(f"{one.key!r} ({one.why_open})" for one in results if one.why_open)
            raise ExceptionGroup(f"these external jobs may be running: {failed}", errors)
        logger.info("Cleanup attempt %d is done.", self._settings.attempt)

    # -- open and leave ----

    def _open_call(self) -> Call[OpenResponse]:
        registered = self._registration
        request = OpenRequest(
            session=self._session,
            can_cleanup=bool(registered),
            cleanup_handler=registered.on_cleanup is not None,
        )
        return Call("POST", "/v1/open", OpenResponse, request)

    def _on_open(self, opened: OpenResponse) -> None:
        is_cleanup = opened.purpose is AttemptPurpose.CLEANUP
        if is_cleanup and not self._settings.is_cleanup:
            self._refuse("this is the pod of a cleanup attempt, and REATTACH_PHASE in its environment is not cleanup")
        if self._settings.is_cleanup and not is_cleanup:
            raise ProtocolError(
                "REATTACH_PHASE is cleanup, and the state API takes this pod for one that runs the task"
            )
        self._job_client.opened_at = self._client.timing.clock()
        self._environment[ENV_SESSION] = self._session
        logger.info("Attempt %d of %s/%s opened its state.", opened.attempt, opened.namespace, opened.taskrun)

    def _check_not_over(self) -> None:
        """Raise the error that ended the attempt, if the task caught it."""
        self._termination.check()

    def _must_complete(self) -> bool:
        return not self._task.completed and not self._is_child

    def _report_end(self, error: BaseException | None) -> None:
        if (end := self._end_to_report(error)) is not None:
            EndReporter(self._client).report(end)

    async def _areport_end(self, error: BaseException | None) -> None:
        if (end := self._end_to_report(error)) is not None:
            await EndReporter(self._client).areport(end)

    def _end_to_report(self, error: BaseException | None) -> EndRequest | None:
        """Return the report about the end of the attempt, before the termination message.

        A child reports nothing, because the process that opened the state may continue. After
        another error that ended the attempt, that error counts, and after SIGTERM the pod does.
        """
        if error is None or self._is_child or self._termination.over is not None:
            return None
        return end_of(error)

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


def task(
    *,
    patience: float = PATIENCE_SECONDS,
    adapters: Iterable[Adapter] = (),
    on_cleanup: CleanupHandler | None = None,
) -> TaskContext:
    """Return a context manager that opens the state of the TaskRun, for `with` or `async with`.

        with reattach.task() as task:
            job_id = task.state.get("job_id")

    The end of the block completes the task, without a result unless you call
    `task.complete(result)`. An exception does not complete the task. If the environment contains
    the session of a parent process, this process uses that session and does not complete the task.

    The SDK logs to the logger `reattach`, which prints to stderr unless you configure logging.

    In a cleanup attempt, the block does not run: entering it cleans up, and raises `SystemExit(0)`
    when nothing is left that this process can do.

    patience: seconds for which a call waits for an unavailable state API.
    adapters: those of the external jobs to cancel if the TaskRun ends without success.
    on_cleanup: a plain or an async function, called with a `CleanupTask` after these jobs have
        ended. It may be called several times.

    Raises:
        NotInPod: this is not the container of a TaskRun.
        AttemptOver: raised on entry, if this attempt must not run any more.
        TypeError, ValueError: `adapters` or `on_cleanup` is wrong.
    """
    log.configure()
    settings = from_environment(os.environ).with_patience(patience)
    return TaskContext(settings, adapters=adapters, on_cleanup=on_cleanup)


@overload
def run(
    main: Callable[[Task], Awaitable[T]],
    *,
    patience: float = ...,
    adapters: Iterable[Adapter] = ...,
    on_cleanup: CleanupHandler | None = ...,
) -> T: ...
@overload
def run(
    main: Callable[[Task], T],
    *,
    patience: float = ...,
    adapters: Iterable[Adapter] = ...,
    on_cleanup: CleanupHandler | None = ...,
) -> T: ...
def run(
    main: Callable[[Task], Any],
    *,
    patience: float = PATIENCE_SECONDS,
    adapters: Iterable[Adapter] = (),
    on_cleanup: CleanupHandler | None = None,
) -> Any:
    """Run `main(task)`, a plain or an async function, as the task, and return its result.

    The result (JSON of at most 4 KiB) becomes `status.result`. `run` does not catch exceptions of
    `main`. If your code does not either, the process prints the traceback and exits with code 1.

    In a cleanup attempt, `run` does not call `main`: it cancels the jobs of `adapters`, calls
    `on_cleanup`, and ends the process. See `task`.

    Call it under `if __name__ == "__main__":`, because a child that `multiprocessing` spawns
    imports your program and would call `main` again.
    """
    return task(patience=patience, adapters=adapters, on_cleanup=on_cleanup).run(main)


@contextlib.contextmanager
def _exit_zero_as_return() -> Iterator[None]:
    """Treat `sys.exit(0)` in `on_cleanup` as its return, so that it hides no error of a job."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end, AttemptOver) or end.code not in (None, 0):
            raise
