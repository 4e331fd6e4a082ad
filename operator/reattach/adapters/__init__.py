"""Adapters for external systems.

    base         the definition of an adapter
    http         any REST API, from a description
    kubernetes   objects of a Kubernetes API: Job, TaskRun, SparkApplication, RayJob, any other kind
    ray          the Jobs API of a Ray cluster
    slurm        Slurm, through its commands or slurmrestd
    http_client  HTTP client for adapters, with bounded time

Import the adapter that you need. They need no more packages than the SDK.
"""
