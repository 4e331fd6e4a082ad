"""Prometheus metrics of the state API."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from reattach.state.job_record import JobRecord

ADAPTERS = frozenset(
    {
        "http",
        "kubernetes-job",
        "kubernetes-rayjob",
        "kubernetes-sparkapplication",
        "kubernetes-taskrun",
        "ray",
        "slurm",
    }
)
"""Values of the label `adapter`: the names of our own adapters. A task may name any other adapter,
so all others are counted as `other`."""


class ServerMetrics:
    """Counters in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "reattach_server_requests",
            "Requests by route, method, HTTP status and problem code (empty: none).",
            ["route", "method", "status", "problem"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "reattach_server_request_seconds",
            "Time from request to response.",
            ["route", "method"],
            registry=self.registry,
        )
        self.conflicts = Counter(
            "reattach_server_conflicts",
            "Changes that conflicted with another writer and were tried again.",
            registry=self.registry,
        )
        self.written_bytes = Counter(
            "reattach_server_written_bytes",
            "Bytes of the ConfigMaps and TaskRuns that this replica wrote.",
            registry=self.registry,
        )
        self.token_reviews = Counter(
            "reattach_server_token_reviews",
            "TokenReviews by result: accepted, refused, error.",
            ["result"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "reattach_server_connections", "Open connections to the state API's port.", registry=self.registry
        )
        self.refused_connections = Counter(
            "reattach_server_refused_connections",
            "New connections that were refused, by the limit: address, total.",
            ["reason"],
            registry=self.registry,
        )
        self.closed_connections = Counter(
            "reattach_server_closed_connections",
            "Connections that the state API closed: evicted (for a new one), no-request (in time), idle (for too long).",
            ["reason"],
            registry=self.registry,
        )
        self.clock_difference = Gauge(
            "reattach_server_clock_difference_seconds",
            "Seconds by which this replica's clock is ahead of the API server's, to about half a second.",
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "reattach_server_certificate_expiry_timestamp_seconds",
            "Time at which the certificate that this replica serves expires, in seconds since 1970.",
            registry=self.registry,
        )
        self.job_decisions = Counter(
            "reattach_job_decisions",
            "Decisions about external jobs: submitted, resubmitted, reattached, adopted, found, existed, reported, held, over.",
            ["decision"],
            registry=self.registry,
        )

        self.ended_jobs = Counter(
            "reattach_external_jobs",
            "External jobs with a stored end, by adapter (of tasks: other) and outcome: Succeeded, Failed, Cancelled.",
            ["adapter", "outcome"],
            registry=self.registry,
        )
        self.ended_job_seconds = Counter(
            "reattach_external_job_seconds",
            "Seconds from the record of the handle of an external job to the record of its end.",
            ["adapter", "outcome"],
            registry=self.registry,
        )

    def count_ended_job(self, job: JobRecord) -> None:
        """Count a job with a stored end. A job without a handle is not known to have existed."""
        if job.handle is None:
            return
        labels = (job.adapter if job.adapter in ADAPTERS else "other", job.state.value)
        self.ended_jobs.labels(*labels).inc()
        if job.recorded_at is not None and job.ended_at is not None:
            seconds = (job.ended_at - job.recorded_at).total_seconds()
            self.ended_job_seconds.labels(*labels).inc(max(0.0, seconds))

    def watch_connections(
        self, count: Callable[[], int], *, refusals: Iterable[str] = (), closures: Iterable[str] = ()
    ) -> None:
        """Export the number of open connections, and every reason with 0."""
        self.connections.set_function(count)
        for refusal in refusals:
            self.refused_connections.labels(refusal)
        for closure in closures:
            self.closed_connections.labels(closure)

    def to_text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
