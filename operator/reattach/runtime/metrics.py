"""Metrics of the operator, for Prometheus."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class OperatorMetrics:
    """All metrics, in their own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.reconciles = Counter("reattach_reconciles_total", "Reconciliations of a TaskRun.", registry=self._registry)
        self.reconcile_errors = Counter(
            "reattach_reconcile_errors_total",
            "Reconciliations of a TaskRun that failed and are retried.",
            registry=self._registry,
        )
        self.reconcile_seconds = Histogram(
            "reattach_reconcile_seconds",
            "Duration of one reconciliation, including its writes.",
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=self._registry,
        )
        self.writes = Counter(
            "reattach_writes_total",
            "Writes to the API server, by verb and resource.",
            ("verb", "resource"),
            registry=self._registry,
        )
        self.conflicts = Counter(
            "reattach_conflicts_total", "Writes rejected because the object had changed.", registry=self._registry
        )
        self.throttled = Counter(
            "reattach_throttled_total", "Responses 429 of the API server.", registry=self._registry
        )
        self.events_dropped = Counter(
            "reattach_events_dropped_total", "Events dropped because of a limit or an error.", registry=self._registry
        )
        self.unreadable = Counter(
            "reattach_unreadable_taskruns_total",
            "TaskRuns skipped because they can't be decoded.",
            registry=self._registry,
        )
        self.unreadable_objects = Counter(
            "reattach_unreadable_objects_total",
            "Objects and watch events skipped because they can't be decoded.",
            ("resource",),
            registry=self._registry,
        )
        self.restarted_loops = Counter(
            "reattach_restarted_loops_total",
            "Loops of the operator that failed and were restarted.",
            ("loop",),
            registry=self._registry,
        )
        self.orphaned_jobs = Counter(
            "reattach_orphaned_jobs_total",
            "External jobs left running by the end of their TaskRun, by the reason of the end.",
            ("reason",),
            registry=self._registry,
        )
        self.unstored_orphan_records = Counter(
            "reattach_unstored_orphan_records_total",
            "Records of orphaned jobs that the API server rejected. The log has their content.",
            registry=self._registry,
        )
        self.cleanups = Counter(
            "reattach_cleanups_total",
            "Ended cleanup attempts, by cause.",
            ("result",),
            registry=self._registry,
        )
        self.ttl_failures = Counter(
            "reattach_ttl_failures_total",
            "Deletions of ended TaskRuns by their ttl that failed and are retried.",
            registry=self._registry,
        )
        self.leader = Gauge("reattach_leader", "1 while this replica leads.", registry=self._registry)

    def gauge(self, name: str, documentation: str, value: Callable[[], float], **labels: str) -> None:
        """Add a gauge whose value is computed when the metrics are read."""
        gauge = Gauge(name, documentation, tuple(labels), registry=self._registry)
        (gauge.labels(**labels) if labels else gauge).set_function(value)

    def gauges(self, name: str, documentation: str, label: str, values: Mapping[str, Callable[[], float]]) -> None:
        """Add a gauge with one label. Its values are computed when the metrics are read."""
        gauge = Gauge(name, documentation, (label,), registry=self._registry)
        for value, function in values.items():
            gauge.labels(**{label: value}).set_function(function)

    def text(self) -> bytes:
        """Return the metrics in the exposition format."""
        return generate_latest(self._registry)
