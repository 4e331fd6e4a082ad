"""Adapters: how jobs are submitted to the external systems that Reattach knows. See `reattach.adapters.base` for what one must do.

    http         any REST API, by a description
    kubernetes   objects of a Kubernetes API: Job, TaskRun, SparkApplication, RayJob, any other kind
    ray          a Ray cluster's Jobs API
    slurm        Slurm, by its commands or slurmrestd
    calls        one request to another system, bounded in time: what an adapter sends with

Each is chosen by importing it; none needs more than the SDK does.
"""
