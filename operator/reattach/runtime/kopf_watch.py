"""kopf's part: log in, watch TaskRuns, and report which one changed. Nothing here decides or writes anything.

Measured on kopf 1.45: any change handler, timer, daemon or index makes it write annotations or finalizers, start a task for each object,
or take quadratic time at start; so there is one `on.event`, and storages that store nothing.

kopf decodes whole pages and streams, and cancels every task of its event loop when it ends. So it sees references alone
(`kopf_responses`), and has a thread and an event loop of its own.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from typing_extensions import override

from reattach.api.names import GROUP, OPERATOR_NAME, PLURAL, VERSION
from reattach.cluster import Cluster, Reference
from reattach.runtime.kopf_responses import ReferenceResponse, middleware
from reattach.taskrun.taskrun_store import UNFINISHED, TaskRunStore

_LOGIN_LASTS = timedelta(minutes=10)
_STOP_SECONDS = 3.0
_LIST_WITHIN_SECONDS = 60.0
"""kopf looks once which kinds there are. If the API server lacks TaskRuns just then, kopf idles for ever."""

Notify = Callable[[str, Reference], None]
"""Called in kopf's thread, with the type of the event: ADDED, MODIFIED, DELETED, or none if the object was listed."""


class NoDiffBase(kopf.DiffBaseStorage):
    """Nothing is compared with what was handled last."""

    @override
    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    @override
    def fetch(self, *, body: Any) -> None:
        return None

    @override
    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        return None


class NoProgress(kopf.ProgressStorage):
    """No handler of ours has progress."""

    @override
    def fetch(self, *, key: Any, body: Any) -> None:
        return None

    @override
    def store(self, *, key: Any, record: Any, body: Any, patch: Any) -> None:
        return None

    @override
    def purge(self, *, key: Any, body: Any, patch: Any) -> None:
        return None

    @override
    def touch(self, *, body: Any, patch: Any, value: Any) -> None:
        return None

    @override
    def clear(self, *, essence: Any) -> Any:
        return essence


def settings_of() -> kopf.OperatorSettings:
    """kopf's settings, each with the reason that its default is not good here."""
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = NoDiffBase()  # a third of the cost of an event
    settings.persistence.progress_storage = NoProgress()
    settings.persistence.finalizer = (
        f"{GROUP}/kopf"  # kopf takes this name off whatever it sees: it must be none of ours
    )
    settings.posting.enabled = False  # unbounded
    settings.scanning.disabled = (
        True  # the CRD is there: it was checked; no right to watch CRDs and namespaces is needed
    )
    settings.queueing.idle_timeout = 0.5  # a task for each object that had an event, for so long
    settings.queueing.worker_limit = None  # any limit holds back new objects for idle_timeout each
    settings.watching.chunk_size = 20  # a page of metadata has no other limit, and each object may have 1.5 MiB
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 90
    settings.watching.field_selectors[GROUP, VERSION, PLURAL] = UNFINISHED
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 5, 10, 10, 10)  # an API server may be away for half a minute
    return settings


class KopfEndedError(Exception):
    """kopf ended without having been stopped."""


def registry_of(notify: Notify, cluster: Cluster, on_answer: Callable[[], None]) -> kopf.OperatorRegistry:
    """The two handlers: login and the watch."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[arg-type, untyped-decorator, unused-ignore]
    async def login(**_: Any) -> kopf.AiohttpSession:
        return await log_in(cluster, on_answer)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)  # type: ignore[arg-type, untyped-decorator, unused-ignore]
    async def taskrun_changed(event: Mapping[str, Any], **_: Any) -> None:
        about = event["object"]["metadata"]
        reference = Reference(about["namespace"], about["name"], about["uid"], about["resourceVersion"])
        notify(event["type"] or "", reference)

    return registry


async def log_in(cluster: Cluster, on_answer: Callable[[], None]) -> kopf.AiohttpSession:
    """Return a session with the credentials of `cluster`, for ten minutes: then a rotated token is read again.

    The expiration makes each login differ from the one before: one 401 with equal credentials ends kopf. The number of connections has
    no limit, because kopf holds one for each namespace that it watches. `on_answer` is called after each list and watch of TaskRuns.
    """
    return kopf.AiohttpSession(
        server=cluster.host,
        aiohttp_session=await cluster.new_session(
            middlewares=(middleware(on_answer),), response_class=ReferenceResponse
        ),
        expiration=datetime.now(UTC) + _LOGIN_LASTS,
    )


async def watch_taskruns(taskruns: TaskRunStore, cluster: Cluster, namespaces: Collection[str]) -> None:
    """Run kopf in its thread until this task is cancelled, and notify `taskruns` in this event loop.

    Raises whatever ended kopf, or `KopfEndedError`.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop: asyncio.Future[Callable[[], object]] = loop.create_future()
    listed = threading.Event()

    def notify(kind: str, reference: Reference) -> None:
        act = taskruns.on_deleted if kind == "DELETED" else taskruns.on_event
        loop.call_soon_threadsafe(act, reference)

    async def run() -> None:
        stop_flag = asyncio.Event()
        own_loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(stop.set_result, lambda: own_loop.call_soon_threadsafe(stop_flag.set))
        await kopf.operator(
            registry=registry_of(notify, cluster, listed.set),
            settings=settings_of(),
            identity=OPERATOR_NAME,  # type: ignore[arg-type] # unused without peering; else kopf asks for the user's name, and ours has none
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
            stop_flag=stop_flag,
        )

    def run_in_thread() -> None:
        error: BaseException = KopfEndedError("kopf ended without having been stopped")
        try:
            asyncio.run(run())
        except BaseException as caught:  # noqa: BLE001 -- whatever it is, it is raised in the other thread
            error = caught
        with suppress(RuntimeError):  # the event loop is closed, because the process ends
            loop.call_soon_threadsafe(_fail, ended, error)

    threading.Thread(target=run_in_thread, name="kopf", daemon=True).start()
    try:
        await asyncio.wait([ended], timeout=_LIST_WITHIN_SECONDS)
        if not ended.done() and not listed.is_set():
            raise KopfEndedError(f"kopf was stopped because it did not list TaskRuns within {_LIST_WITHIN_SECONDS:g} s")
        await asyncio.wait([ended])
        ended.result()
    finally:
        either: list[asyncio.Future[Any]] = [stop, ended]  # kopf may be starting still
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=_STOP_SECONDS)
        if not ended.done() and stop.done():
            with suppress(RuntimeError):  # kopf has ended already
                stop.result()()
            await asyncio.wait([ended], timeout=_STOP_SECONDS)
        ended.add_done_callback(lambda future: future.exception())  # an error that comes later is not awaited


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    # A task that awaits a CancelledError would take it for its own cancellation.
    if not future.done():
        future.set_exception(KopfEndedError(f"kopf ended by {error!r}") if not isinstance(error, Exception) else error)
