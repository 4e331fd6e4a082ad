"""Objects of a Kubernetes API as jobs.

kinds.py      pure: what a kind is like, and the presets
objects.py    pure: what is created, whose it is, and what the responses mean
access.py     the API server, and who calls it
adapter.py    sends the requests
"""

from reattach.adapters.kubernetes.access import Access, AccessError
from reattach.adapters.kubernetes.adapter import KubernetesObjects
from reattach.adapters.kubernetes.kinds import JOB, RAY_JOB, SPARK_APPLICATION, TASKRUN, Kind, When

__all__ = [
    "JOB",
    "RAY_JOB",
    "SPARK_APPLICATION",
    "TASKRUN",
    "Access",
    "AccessError",
    "Kind",
    "KubernetesObjects",
    "When",
]
