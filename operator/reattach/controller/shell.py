"""kopf's part: log in, watch TaskRuns, and hand each event on. Nothing here decides or writes anything.

Measured on kopf 1.45: any change handler, timer, daemon or index makes it write annotations or finalizers, start a task for each object,
or take quadratic time at start; so there is one `on.event`, and storages that store nothing.
"""

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from typing_extensions import override

from reattach.api.names import GROUP, OPERATOR_NAME, PLURAL, VERSION
from reattach.cluster import Cluster
from reattach.controller.taskruns import UNFINISHED, TaskRuns

_CONNECTIONS = 16
_LOGIN_LASTS = timedelta(minutes=10)

_log = logging.getLogger(__name__)


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
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 90
    settings.watching.field_selectors[GROUP, VERSION, PLURAL] = UNFINISHED
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 5, 10, 10, 10)  # an API server may be away for half a minute
    return settings


def registry_of(taskruns: TaskRuns, cluster: Cluster) -> kopf.OperatorRegistry:
    """The two handlers: login and the watch."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[arg-type, untyped-decorator, unused-ignore]
    async def login(**_: Any) -> kopf.AiohttpSession:
        return await log_in(cluster)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)  # type: ignore[arg-type, untyped-decorator, unused-ignore]
    async def taskrun_changed(event: Mapping[str, Any], **_: Any) -> None:
        if event["type"] == "DELETED":
            taskruns.lost(event["object"])
        else:
            taskruns.saw(event["object"])

    return registry


async def log_in(cluster: Cluster) -> kopf.AiohttpSession:
    """A bounded session with the credentials of `cluster`, for ten minutes: then a rotated token is read again.

    The expiration makes each login differ from the one before: one 401 with equal credentials ends kopf.
    """
    return kopf.AiohttpSession(
        server=cluster.host,
        aiohttp_session=await cluster.new_session(connections=_CONNECTIONS),
        expiration=datetime.now(UTC) + _LOGIN_LASTS,
    )


async def watch_taskruns(taskruns: TaskRuns, cluster: Cluster, namespaces: Collection[str]) -> None:
    """Until SIGTERM or SIGINT, which kopf takes. Raises what kopf can't go on after."""
    await kopf.operator(
        registry=registry_of(taskruns, cluster),
        settings=settings_of(),
        identity=OPERATOR_NAME,  # type: ignore[arg-type] # unused without peering; else kopf asks for the user's name, and ours has none
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
    )
