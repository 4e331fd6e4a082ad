"""Backoff of pod creations in namespaces whose ResourceQuota rejects pods."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from reattach.round_robin import RoundRobin
from reattach.runtime.workqueue import Key

_FIRST_SECONDS = 0.25
_MAX_SECONDS = 10.0
"""Pause between two probes of a quota that stays full. Each probe is one creation."""
_SLOW_START = 2
"""TaskRuns that are admitted after a successful probe, as in the Job controller's slow start."""


@dataclass(frozen=True, slots=True)
class _Admission:
    """Permission of one TaskRun to create its pod. `probe`: no pod is known to have ended."""

    size: str
    probe: bool


@dataclass(slots=True)
class _FullNamespace:
    """Namespace whose quota rejected a pod, with the TaskRuns that wait or were admitted."""

    probe_at: float
    message: str = ""
    pause: float = _FIRST_SECONDS
    waiting: dict[Key, str] = field(default_factory=dict)
    turns: RoundRobin[str, Key] = field(default_factory=RoundRobin)
    admitted: dict[Key, _Admission] = field(default_factory=dict)

    def wait(self, key: Key, size: str) -> None:
        if key not in self.waiting:
            self.waiting[key] = size
            self.turns.put(size, key)

    def forget(self, key: Key) -> _Admission | None:
        if (size := self.waiting.pop(key, None)) is not None:
            self.turns.remove(size, key)
        return self.admitted.pop(key, None)

    def admit(self, count: int, *, probe: bool) -> list[Key]:
        keys: list[Key] = []
        while self.turns and len(keys) < count:
            key = self.turns.pop()
            self.admitted[key] = _Admission(self.waiting.pop(key), probe)
            keys.append(key)
        return keys

    def admit_one(self, key: Key) -> None:
        size = self.waiting.pop(key)
        self.turns.remove(size, key)
        self.admitted[key] = _Admission(size, probe=False)

    def withdraw_probes(self) -> None:
        for key, admission in list(self.admitted.items()):
            if admission.probe:
                del self.admitted[key]
                self.wait(key, admission.size)


class QuotaBackoff:
    """Selects the TaskRuns that may create a pod while the quota of their namespace is full.

    After a rejection, every TaskRun of the namespace waits. One is admitted when a pod of the
    namespace ends. One is admitted as a *probe* after a pause that doubles up to 10 s, because a
    quota may be raised, too. A successful probe admits two more, so that a raised quota is used
    within seconds.

    TaskRuns of different sizes take turns, because the quota may have room for small pods only.

    All methods are synchronous and do no I/O. Keys that they return were admitted just now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full: dict[str, _FullNamespace] = {}

    def may_create(self, key: Key, size: str) -> bool:
        """Return whether the TaskRun may create its pod. If not, it waits to be admitted."""
        full = self._full.get(key.namespace)
        if full is None or key in full.admitted:
            return True
        full.wait(key, size)
        return False

    def is_waiting(self, key: Key) -> bool:
        """Return whether the TaskRun waits to be admitted."""
        full = self._full.get(key.namespace)
        return full is not None and key in full.waiting

    def message_of(self, namespace: str) -> str:
        """Return the last rejection in a namespace whose quota is full."""
        return self._full[namespace].message

    def on_rejected(self, key: Key, size: str, message: str) -> None:
        """Have the TaskRun wait, and with it all TaskRuns that were admitted as probes."""
        full = self._full.setdefault(key.namespace, _FullNamespace(probe_at=self._clock() + _FIRST_SECONDS))
        full.message = message
        full.forget(key)
        full.wait(key, size)
        full.withdraw_probes()

    def on_created(self, key: Key) -> list[Key]:
        """Admit more TaskRuns after a probe succeeded."""
        full = self._full.get(key.namespace)
        admission = full.forget(key) if full else None
        if full is None or admission is None or not admission.probe:
            return []
        self._expect_room(full)
        return full.admit(_SLOW_START, probe=True)

    def on_pod_ended(self, namespace: str) -> list[Key]:
        """Admit one TaskRun, because a pod left its place."""
        full = self._full.get(namespace)
        if full is None:
            return []
        self._expect_room(full)
        return full.admit(1, probe=False)

    def on_room_made(self, key: Key) -> list[Key]:
        """Admit this TaskRun, because one of its own kept pods left its place."""
        full = self._full.get(key.namespace)
        if full is None or key not in full.waiting:
            return []
        self._expect_room(full)
        full.admit_one(key)
        return [key]

    def due(self) -> list[Key]:
        """Admit one probe in each namespace whose pause is over.

        Forget the namespaces in which no TaskRun waits.
        """
        keys: list[Key] = []
        now = self._clock()
        for namespace, full in list(self._full.items()):
            if now < full.probe_at:
                continue
            if not full.waiting:
                del self._full[namespace]
                continue
            keys += full.admit(1, probe=True)
            full.pause = min(2 * full.pause, _MAX_SECONDS)
            full.probe_at = now + full.pause
        return keys

    def forget(self, key: Key) -> None:
        """Forget a TaskRun that is finished or gone, or was rejected for another reason."""
        if (full := self._full.get(key.namespace)) is not None:
            full.forget(key)

    def _expect_room(self, full: _FullNamespace) -> None:
        """Probe soon: the quota controller counts an ended pod until it has seen its end."""
        full.pause = _FIRST_SECONDS
        full.probe_at = min(full.probe_at, self._clock() + _FIRST_SECONDS)
