"""Process of the operator: the order in which its parts start, and how it ends."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec

from reattach.api.names import KIND, LABEL_ORPHANS, LABEL_TASKRUN, OPERATOR_NAME, PLURAL
from reattach.api.objects import PartialObject, Pod, Shape
from reattach.api.reasons import HOLDS
from reattach.api.taskrun import TaskRun
from reattach.cluster import Cluster, ClusterError, paths
from reattach.pki.certificates import Bundle, CertificatesError, distribute, ensure
from reattach.planner.plan import PodDefaults
from reattach.process.options import RunOptions
from reattach.runtime.controller import Controller
from reattach.runtime.health import Health
from reattach.runtime.kopf_watch import KopfWatch, watch
from reattach.runtime.leader_election import LeaderElector, LeadershipLostError
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.supervision import keep_running
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.writer import NotLeadingError, Writer
from reattach.state import Store
from reattach.taskrun.key_expiry import KeyExpiry
from reattach.taskrun.node_reader import NodeReader
from reattach.taskrun.orphan_records import orphan_store
from reattach.taskrun.owned_stores import pod_store, state_store
from reattach.taskrun.pod_event_reader import PodEventReader
from reattach.taskrun.reconciler import Decide, Reconciler, Stores
from reattach.taskrun.schema import SchemaError, check_schema
from reattach.taskrun.taskrun_events import taskrun_event_recorder
from reattach.taskrun.taskrun_store import TASKRUNS, UNFINISHED, TaskRunStore
from reattach.taskrun.ttl import TtlController

_TRY_AGAIN_SECONDS = 2.0

_log = logging.getLogger(__name__)

T = TypeVar("T")


class _ServiceSpec(Shape, frozen=True):
    cluster_ip: str = msgspec.field(default="", name="clusterIP")


class _Service(Shape, frozen=True):
    spec: _ServiceSpec = _ServiceSpec()


class StoppedError(Exception):
    """Request to stop by SIGTERM or SIGINT."""


class Operator:
    """All parts of one process. Call `run`."""

    def __init__(self, options: RunOptions, cluster: Cluster, lease_cluster: Cluster, decide: Decide) -> None:
        self._options = options
        self._cluster = cluster
        self._metrics = OperatorMetrics()
        self._leader = LeaderElector(lease_cluster, options.lease)
        self._not_ready_reason = "start-up"
        self._health = Health(self._metrics if options.serve_metrics else None, lambda: self._not_ready_reason)
        self._settings = PodDefaults(
            url=options.state_api_url, ca=options.ca_file.read_text() if options.ca_file else ""
        )
        self._unreadable = UnreadableObjects(self._metrics, own_plural=PLURAL)
        self._controller = Controller(
            KIND, cluster, self._metrics, self._unreadable, options.watch_namespaces, workers=options.workers
        )
        self._queue = self._controller.queue
        rate_limiter = RateLimiter(per_second=options.writes_per_second, at_once=options.writes_at_once)
        self._writer = writer = Writer(cluster, rate_limiter, self._leader.leads, self._metrics)
        self._orphans = orphan_store()
        self._ttl = TtlController(
            cluster,
            writer,
            options.watch_namespaces,
            self._orphans,
            unreadable=self._unreadable,
            metrics=self._metrics,
            sweep_seconds=options.sweep_seconds,
        )
        self._taskruns = TaskRunStore(
            cluster,
            options.watch_namespaces,
            self._queue.add,
            self._unreadable,
            on_finished=self._ttl.on_finished,
        )
        self._pods = pod_store(self._queue.add)
        self._states = state_store(self._queue.add)
        self._controller.watch(TASKRUNS.path, TaskRun, self._taskruns, field_selector=UNFINISHED)
        self._controller.watch(paths.pods, Pod, self._pods, label_selector=LABEL_TASKRUN)
        self._controller.watch(
            paths.configmaps, PartialObject, self._states, label_selector=LABEL_TASKRUN, metadata_only=True
        )
        self._controller.watch(
            paths.configmaps, PartialObject, self._orphans, label_selector=LABEL_ORPHANS, metadata_only=True
        )
        self._event_recorder = taskrun_event_recorder(
            writer, options.instance, self._metrics, self._taskruns.ending_reason
        )
        self._reconciler = Reconciler(
            cluster=cluster,
            writer=writer,
            stores=Stores(taskruns=self._taskruns, pods=self._pods, states=self._states, orphans=self._orphans),
            queue=self._queue,
            event_recorder=self._event_recorder,
            metrics=self._metrics,
            decide=decide,
            pod_defaults=lambda: self._settings,
            nodes=NodeReader(
                cluster,
                clock=lambda: datetime.now(UTC),
                enabled=options.read_nodes,
                deletion_counts=options.deleted_nodes_are_dead,
            ),
            pod_events=PodEventReader(cluster, clock=lambda: datetime.now(UTC)),
            paused=options.paused,
        )
        states = Store(writer, field_manager=OPERATOR_NAME)
        self._expiry = KeyExpiry(cluster, options.watch_namespaces, states, self._unreadable)
        self._register_gauges()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, the loss of the Lease, or `SchemaError`.

        Any other error ends only its loop, which is restarted.
        """
        await self._health.start(self._options.host, self._options.metrics_port)
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(_stop_on_signal())
                await _retry_forever(lambda: check_schema(self._cluster), "the schema of TaskRuns")
                self._not_ready_reason = ""  # this replica stands by
                await self._leader.acquire()
                self._metrics.leader.set(1)
                await self._start_leading(parts)
        except* StoppedError:
            _log.info("Stopped.")
        finally:
            self._not_ready_reason = "stopping"
            await self._leader.release()
            await self._health.stop()

    async def _start_leading(self, parts: asyncio.TaskGroup) -> None:
        """Start the parts in the order in which they need each other."""

        def start(name: str, loop: Callable[[], Awaitable[None]]) -> None:
            parts.create_task(keep_running(name, loop, self._metrics), name=name)

        if self._options.paused:
            _log.warning("Paused: no attempt starts until the operator runs without --paused.")
        self._not_ready_reason = "the first lists of the cluster"
        start("lease", self._keep_lease)
        if self._options.certificates:
            await _retry_forever(self._ensure_certificates, "the certificates of the state API")
            start("certificates", self._keep_certificates)
        await self._read_address()
        await self._controller.start_reflectors(start)
        _log.info("Known: %s TaskRuns, %s pods, %s states.", len(self._taskruns), len(self._pods), len(self._states))
        self._taskruns.enqueue_all()
        self._controller.start_workers(start, self._reconciler.reconcile)
        start("events", self._event_recorder.run)
        start("sweep", self._resync_loop)
        start("address", self._keep_address)
        start("overdue", self._taskruns.run_overdue)
        start("quota", self._reconciler.run_quota_probes)
        if not self._options.paused:
            self._ttl.start(start)
        start("kopf", self._watch_taskruns)
        self._not_ready_reason = ""

    async def _keep_lease(self) -> None:
        try:
            await self._leader.keep()
        except LeadershipLostError as error:
            _log.critical("%s", error)
            logging.shutdown()
            # Exit at once, because no write of this process may arrive after another replica's
            # first write.
            os._exit(1)

    async def _watch_taskruns(self) -> None:
        watched = KopfWatch(
            resource=TASKRUNS,
            identity=OPERATOR_NAME,
            on_event=self._taskruns.on_event,
            on_deleted=self._taskruns.on_deleted,
            is_needed=self._taskruns.is_needed,
            namespaces=self._options.watch_namespaces,
            field_selector=UNFINISHED,
        )
        await watch(watched, self._cluster)

    async def _resync_loop(self) -> None:
        """List all TaskRuns periodically, because kopf misses deletions while its watch is broken.

        Remove expired keys.
        """
        while True:
            await asyncio.sleep(self._options.sweep_seconds)
            try:
                await self._taskruns.resync()
            except (ClusterError, msgspec.DecodeError) as error:
                _log.warning("The TaskRuns could not be listed: %s", error)
            await self._expiry.sweep(datetime.now(UTC))

    async def _keep_address(self) -> None:
        """Read the address of the state API periodically, because its Service may be replaced."""
        while True:
            await asyncio.sleep(self._options.sweep_seconds)
            await self._read_address()

    async def _read_address(self) -> None:
        """Put the address of the state API into new pods, for those that can't resolve its name."""
        if not (name := self._options.state_api_service):
            return
        try:
            found = await self._cluster.get(paths.services(self._options.lease.namespace, name))
            address = msgspec.json.decode(found, type=_Service).spec.cluster_ip
        except (ClusterError, msgspec.DecodeError) as error:
            _log.warning("Pods get no new address of the state API, because Service %s can't be read: %s", name, error)
            return
        # A headless Service has the address None.
        self._settings = replace(self._settings, address="" if address == "None" else address)

    async def _ensure_certificates(self) -> Bundle:
        """Renew the certificates, and put their CAs into new pods."""
        assert self._options.certificates is not None, "called only if the operator creates the certificates"
        bundle = await ensure(self._cluster, self._writer, self._options.certificates, datetime.now(UTC))
        self._settings = replace(self._settings, ca=bundle.pem)
        return bundle

    async def _keep_certificates(self) -> None:
        """Renew the certificates in time, and put the bundle on each live pod that lacks it.

        Users can remove the bundle from any number of pods, so the start does not wait for this.
        """
        while True:
            try:
                bundle = await self._ensure_certificates()
                await distribute(self._cluster, self._writer, self._options.watch_namespaces, bundle.pem)
                wait = max((bundle.check_again_at - datetime.now(UTC)).total_seconds(), 1.0)
            except (ClusterError, CertificatesError, NotLeadingError) as error:
                _log.warning("The certificates of the state API: %s", error)
                wait = _TRY_AGAIN_SECONDS
            await asyncio.sleep(wait)

    def _register_gauges(self) -> None:
        gauge = self._metrics.gauge
        gauge("reattach_queue_depth", "TaskRuns that wait for a worker.", lambda: self._queue.depth)
        gauge("reattach_queue_oldest_seconds", "Seconds that the oldest of them has waited.", self._queue.oldest_age)
        gauge(
            "reattach_queue_delayed", "TaskRuns that are reconciled again at a later time.", lambda: self._queue.delayed
        )
        gauge("reattach_paused", "1 if no attempts are started.", lambda: self._options.paused)
        gauge("reattach_taskruns", "Unfinished TaskRuns.", lambda: len(self._taskruns))
        gauge("reattach_pods", "Pods of unfinished TaskRuns, and pods that still run.", lambda: len(self._pods))
        gauge("reattach_ttl_pending", "Ended TaskRuns that will soon be deleted by their ttl.", lambda: len(self._ttl))
        gauge("reattach_orphan_records", "Records of orphaned external jobs.", lambda: len(self._orphans))
        ages = {path: partial(self._controller.watch_age, path) for path in self._controller.watched_paths}
        since = "Seconds since the last line of a watch."
        self._metrics.gauges("reattach_watch_age_seconds", since, "watch", ages)
        held = {reason.value: partial(self._taskruns.held, reason) for reason in HOLDS}
        self._metrics.gauges("reattach_held_taskruns", "TaskRuns that wait for a manual resolution.", "reason", held)


async def run(options: RunOptions, decide: Decide) -> int:
    """Run the operator. Return the exit code of the process."""
    deadline = options.lease.deadline_seconds
    async with (
        await Cluster.connect(options.kubeconfig) as cluster,
        await Cluster.connect(options.kubeconfig, connections=2, timeout=deadline) as lease_cluster,
    ):
        try:
            await Operator(options, cluster, lease_cluster, decide).run()
        except ExceptionGroup as group:
            schema, others = group.split(SchemaError)
            for error in schema.exceptions if schema else ():
                _log.critical("%s", error)
            for error in others.exceptions if others else ():
                _log.critical("Unrecoverable error: %r", error, exc_info=error)
            return 1
    return 0


async def _stop_on_signal() -> None:
    """Raise `StoppedError` on SIGTERM or SIGINT."""
    received = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received.set)
    await received.wait()
    raise StoppedError


async def _retry_forever(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """Retry `attempt` until it succeeds. Raises `SchemaError`.

    An exit would not help, because the kubelet waits longer before each restart.
    """
    logged = ""
    while True:
        try:
            return await attempt()
        except SchemaError:
            raise
        except Exception as error:  # noqa: BLE001 -- such as a response of a proxy that is not JSON
            if str(error) != logged:
                logged = str(error)
                _log.warning("Waiting for %s: %s", what, error)
            await asyncio.sleep(_TRY_AGAIN_SECONDS)
