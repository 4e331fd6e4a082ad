"""What the state API counts."""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest


class Metrics:
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
            "reattach_server_request_seconds", "Time to answer.", ["route", "method"], registry=self.registry
        )
        self.conflicts = Counter(
            "reattach_server_conflicts",
            "Changes that lost a race against another replica and were tried again.",
            registry=self.registry,
        )
        self.token_reviews = Counter(
            "reattach_server_token_reviews",
            "TokenReviews by result: accepted, refused, error.",
            ["result"],
            registry=self.registry,
        )
        self.job_decisions = Counter(
            "reattach_job_decisions",
            "What was decided about external jobs: submitted, resubmitted, reattached, adopted, found, existed, reported, held, over.",
            ["decision"],
            registry=self.registry,
        )

    def to_text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
