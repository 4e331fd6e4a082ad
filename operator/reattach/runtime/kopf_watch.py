"""Log in, watch one kind of object with kopf, and report which object changed.

This module decides and writes nothing.

Measured on kopf 1.45: any change handler, timer, daemon or index makes it write annotations or
finalizers, start a task for each object, or take quadratic time at start. So there is only one
`on.event`, and storages that store nothing.

kopf decodes whole pages and streams, and cancels every task of its event loop when it ends. So it
receives only references (`kopf_responses`), and has a thread and an event loop of its own.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory  # kopf does not export them
from typing_extensions import override

from reattach.cluster import Cluster, Reference
from reattach.runtime.event_loop import loop_factory
from reattach.runtime.kopf_responses import IsNeeded, middleware, response_class_for
from reattach.runtime.resource import Resource

_LOGIN_LASTS = timedelta(minutes=10)
_STOP_SECONDS = 3.0
_LIST_WITHIN_SECONDS = 60.0
"""kopf lists the kinds once. If the API server lacks the watched kind at that time, kopf idles
forever.
"""

Notify = Callable[[str, Reference], None]
"""Called in kopf's thread with the type of the event: ADDED, MODIFIED, DELETED, or empty if the
object was listed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KopfWatch:
    """Objects to watch, and the callbacks, which are called in the event loop of `watch`.

    No `namespaces` means all. `is_needed` is called in kopf's thread. kopf does not receive events
    for which it returns False, because each one costs kopf several times the check.
    """

    resource: Resource
    identity: str
    on_event: Callable[[Reference], None]
    on_deleted: Callable[[Reference], None]
    is_needed: IsNeeded = lambda _type, _reference: True
    namespaces: Collection[str] = ()
    field_selector: str | None = None


class NoDiffBase(kopf.DiffBaseStorage):
    """Storage without a last handled version, because no handler compares."""

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
    """Storage without progress, because no handler has any."""

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


def settings_for(watched: KopfWatch) -> kopf.OperatorSettings:
    """Return kopf's settings, each with the reason against its default."""
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = NoDiffBase()  # a third of the cost of an event
    settings.persistence.progress_storage = NoProgress()
    # kopf removes this finalizer from every object that it sees, so it must not be one of ours.
    settings.persistence.finalizer = f"{watched.resource.group}/kopf"
    settings.posting.enabled = False  # unbounded
    settings.scanning.disabled = True  # the CRD exists; so no right to watch CRDs and namespaces is needed
    settings.queueing.idle_timeout = 0.5  # how long kopf keeps a task for each object with an event
    settings.queueing.worker_limit = None  # any limit holds back new objects for idle_timeout each
    settings.watching.chunk_size = 20  # a page of metadata has no other limit, and an object may have 1.5 MiB
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 90
    if watched.field_selector is not None:
        resource = watched.resource
        settings.watching.field_selectors[resource.group, resource.version, resource.plural] = watched.field_selector
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = (
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        10,
        10,
    )  # an API server may be unavailable for half a minute
    return settings


class NoMemories(ResourceMemories):
    """Memories that keep nothing about an object, because no handler reads any.

    Without them, kopf needs no event of a deletion, and a live object takes none of its memory.
    """

    @override
    async def recall(self, raw_body: Any, *, ephemeral: bool = False, **options: Any) -> ResourceMemory:
        return await super().recall(raw_body, ephemeral=True, **options)


class KopfEndedError(Exception):
    """kopf ended before it was stopped."""


def registry_for(
    watched: KopfWatch, notify: Notify, cluster: Cluster, on_response: Callable[[], None]
) -> kopf.OperatorRegistry:
    """Return the two handlers: login and the watch."""
    resource = watched.resource
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[arg-type, untyped-decorator, unused-ignore]
    async def login(**_: Any) -> kopf.AiohttpSession:
        return await log_in(watched, cluster, on_response)

    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry)  # type: ignore[arg-type, untyped-decorator, unused-ignore]
    async def object_changed(event: Mapping[str, Any], **_: Any) -> None:
        metadata = event["object"]["metadata"]
        reference = Reference(metadata["namespace"], metadata["name"], metadata["uid"], metadata["resourceVersion"])
        notify(event["type"] or "", reference)

    return registry


async def log_in(watched: KopfWatch, cluster: Cluster, on_response: Callable[[], None]) -> kopf.AiohttpSession:
    """Return a session with the credentials of `cluster`.

    It expires after ten minutes, so that a rotated token is read again.

    The expiration makes each login differ from the one before, because one 401 with equal
    credentials ends kopf. The number of connections has no limit, because kopf holds one for each
    namespace. `on_response` is called after each list and watch that succeeded.
    """
    return kopf.AiohttpSession(
        server=cluster.host,
        aiohttp_session=await cluster.new_session(
            middlewares=(middleware(watched.resource, on_response),),
            response_class=response_class_for(watched.resource, watched.is_needed),
        ),
        expiration=datetime.now(UTC) + _LOGIN_LASTS,
    )


async def watch(watched: KopfWatch, cluster: Cluster) -> None:
    """Run kopf in its thread until this task is cancelled.

    Raises the error that ended kopf, or `KopfEndedError`.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop: asyncio.Future[Callable[[], object]] = loop.create_future()
    listed = threading.Event()

    def notify(event_type: str, reference: Reference) -> None:
        loop.call_soon_threadsafe(watched.on_deleted if event_type == "DELETED" else watched.on_event, reference)

    async def run() -> None:
        stop_flag = asyncio.Event()
        own_loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(stop.set_result, lambda: own_loop.call_soon_threadsafe(stop_flag.set))
        await kopf.operator(
            registry=registry_for(watched, notify, cluster, listed.set),
            settings=settings_for(watched),
            memories=NoMemories(),
            identity=watched.identity,  # type: ignore[arg-type] # unused without peering; the default is the name of the user, and ours has none
            standalone=True,
            clusterwide=not watched.namespaces,
            namespaces=list(watched.namespaces),
            stop_flag=stop_flag,
        )

    def run_in_thread() -> None:
        error: BaseException = KopfEndedError("kopf ended before it was stopped")
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(run())
        except BaseException as caught:  # noqa: BLE001 -- any error is raised in the other thread
            error = caught
        with suppress(RuntimeError):  # the event loop is closed, because the process ends
            loop.call_soon_threadsafe(_fail, ended, error)

    threading.Thread(target=run_in_thread, name="kopf", daemon=True).start()
    try:
        await asyncio.wait([ended], timeout=_LIST_WITHIN_SECONDS)
        if not ended.done() and not listed.is_set():
            what = f"{watched.resource.plural} within {_LIST_WITHIN_SECONDS:g} s"
            raise KopfEndedError(f"kopf was stopped because it did not list {what}")
        await asyncio.wait([ended])
        ended.result()
    finally:
        either: list[asyncio.Future[Any]] = [stop, ended]  # kopf may still be starting
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=_STOP_SECONDS)
        if not ended.done() and stop.done():
            with suppress(RuntimeError):  # kopf has ended already
                stop.result()()
            await asyncio.wait([ended], timeout=_STOP_SECONDS)
        ended.add_done_callback(lambda future: future.exception())  # an error that comes later is not awaited


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    # A task that awaits a CancelledError would treat the error as its own cancellation.
    if not future.done():
        future.set_exception(KopfEndedError(f"kopf ended by {error!r}") if not isinstance(error, Exception) else error)
