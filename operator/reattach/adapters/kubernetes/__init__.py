"""Objects of a Kubernetes API as jobs.

kinds.py      pure: descriptions of kinds, and the presets
objects.py    pure: the object to create and the meaning of responses
access.py     the address of the API server and the client's credentials
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
