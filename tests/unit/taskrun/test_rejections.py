"""Rejections of pods: what they mean, and which TaskRuns may try again in a full namespace."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.cluster import (
    BadRequestError,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    UnavailableError,
)
from reattach.cluster.errors import error_of
from reattach.planner.plan import PodRejectionKind
from reattach.planner.pods import quota_size_of
from reattach.runtime.workqueue import Key
from reattach.taskrun.pod_rejections import describe_template_error, excess_pods_of, rejection_kind_of
from reattach.taskrun.quota_backoff import QuotaBackoff

POD = "load-1a2b3-1"
FORBIDDEN = f'pods "{POD}" is forbidden: '
UNKNOWN_FIELD = "strict decoding error: unknown field "
WRONG_VALUE = f'Pod "{POD}" is invalid: spec.containers[0].image: Invalid value: '


class TestKindOfRejection:
    @pytest.mark.parametrize(
        "error, kind",
        [
            (BadRequestError(400, "BadRequest", UNKNOWN_FIELD + '"spec.nope"'), PodRejectionKind.INVALID),
            (InvalidError(422, "Invalid", "spec.containers[0].image: Required value"), PodRejectionKind.INVALID),
            (error_of(400, {}, None), PodRejectionKind.ERROR),  # of a proxy, because it has no Status object
            (error_of(413, {}, None), PodRejectionKind.ERROR),
            (error_of(500, {"message": "etcdserver: request is too large"}, None), PodRejectionKind.ERROR),
            (ForbiddenError(403, "Forbidden", FORBIDDEN + "exceeded quota: q, requested: "), PodRejectionKind.QUOTA),
            (ForbiddenError(403, "Forbidden", FORBIDDEN + "status unknown for quota: q"), PodRejectionKind.QUOTA),
            (ForbiddenError(403, "Forbidden", FORBIDDEN + "failed quota: q: must specify"), PodRejectionKind.FORBIDDEN),
            (ForbiddenError(403, "Forbidden", FORBIDDEN + "violates PodSecurity"), PodRejectionKind.FORBIDDEN),
            (
                InvalidError(422, "Invalid", FORBIDDEN + "ValidatingAdmissionPolicy 'p' with binding 'b' denied"),
                PodRejectionKind.FORBIDDEN,
            ),
            (BadRequestError(400, "BadRequest", 'admission webhook "w" denied'), PodRejectionKind.FORBIDDEN),
            (InvalidError(422, "Invalid", 'admission webhook "w" denied'), PodRejectionKind.FORBIDDEN),
            (error_of(429, {"message": 'admission webhook "w" denied'}, 60.0), PodRejectionKind.FORBIDDEN),
            (UnavailableError(500, "InternalError", 'failed calling webhook "w"'), PodRejectionKind.ERROR),
            (ConflictError(409, "Conflict", "the quota changed"), PodRejectionKind.ERROR),
        ],
        ids=lambda value: value.value if isinstance(value, PodRejectionKind) else None,
    )
    def test_kind_follows_from_the_response(self, error: ClusterError, kind: PodRejectionKind) -> None:
        assert rejection_kind_of(error, POD) is kind

    @pytest.mark.parametrize(
        "value",
        [
            'admission webhook "w" denied the request',
            "ValidatingAdmissionPolicy 'p' with binding 'b' denied request",
            "exceeded quota: q",
            FORBIDDEN + "exceeded quota: q",
        ],
    )
    def test_value_of_the_template_in_the_message_does_not_change_the_kind(self, value: str) -> None:
        for error in (
            BadRequestError(400, "BadRequest", f'{UNKNOWN_FIELD}"{value}"'),
            InvalidError(422, "Invalid", f'{WRONG_VALUE}"{value}"'),
        ):
            assert rejection_kind_of(error, POD) is PodRejectionKind.INVALID
        for message in (f'{FORBIDDEN}violates PodSecurity: "{value}"', f'admission webhook "w" denied: {value}'):
            assert rejection_kind_of(ForbiddenError(403, "Forbidden", message), POD) is PodRejectionKind.FORBIDDEN


class TestExcessPods:
    @pytest.mark.parametrize(
        "message, excess",
        [
            ("exceeded quota: few, requested: count/pods=1, used: count/pods=3, limited: count/pods=3", 1),
            ("exceeded quota: few, requested: count/pods=1, used: count/pods=5, limited: count/pods=3", 3),
            ("exceeded quota: few, requested: count/pods=1, used: count/pods=2k, limited: count/pods=1k", 10),
            # Its usage was counted again after the rejection.
            ("exceeded quota: few, requested: count/pods=1, used: count/pods=1, limited: count/pods=3", 1),
            ("exceeded quota: few, requested: pods=1, used: pods=3, limited: pods=3", 0),
            ("exceeded quota: few, requested: limits.memory=1Gi, used: limits.memory=0, limited: limits.memory=0", 0),
            (
                "exceeded quota: few, requested: count/pods=1,pods=1, used: count/pods=3,pods=1, limited: count/pods=3,pods=1",
                0,
            ),
            ("status unknown for quota: few", 0),
            ("exceeded quota: few, requested: count/pods=, used: count/pods=, limited: count/pods=", 0),
        ],
    )
    def test_only_a_quota_that_counts_ended_pods_needs_less_of_them(self, message: str, excess: int) -> None:
        assert excess_pods_of(ForbiddenError(403, "Forbidden", FORBIDDEN + message), POD) == excess

    def test_message_of_a_policy_is_not_taken_for_one_of_a_quota(self) -> None:
        message = "exceeded quota: few, requested: count/pods=1, used: count/pods=3, limited: count/pods=3"
        denial = f"{FORBIDDEN}ValidatingAdmissionPolicy 'p' denied request: {message}"
        assert excess_pods_of(ForbiddenError(403, "Forbidden", denial), POD) == 0


class TestDescriptionOfATemplateError:
    def test_each_wrong_field_has_its_path_in_a_taskrun(self) -> None:
        causes = (
            {"field": "template.spec.containers[0].image", "message": "Required value"},
            {"field": "template.metadata.labels", "message": "Invalid value"},
        )
        error = InvalidError(422, "Invalid", 'PodTemplate "load-1" is invalid: […]', causes)
        expected = (
            "spec.template.spec.containers[0].image: Required value; spec.template.metadata.labels: Invalid value"
        )
        assert describe_template_error(error) == expected

    def test_number_of_fields_is_limited(self) -> None:
        causes = tuple({"field": f"template.spec.volumes[{number}]", "message": "No"} for number in range(1000))
        assert describe_template_error(InvalidError(422, "Invalid", "", causes)).count("; ") == 19

    @pytest.mark.parametrize(
        "message, expected",
        [
            (
                'strict decoding error: unknown field "template.spec.foo", unknown field "template.spec.bar"',
                'strict decoding error: unknown field "spec.template.spec.foo", unknown field "spec.template.spec.bar"',
            ),
            (
                "json: cannot unmarshal string into Go struct field PodSpec.template.spec.hostPID of type bool",
                "json: cannot unmarshal string into field spec.template.spec.hostPID of type bool",
            ),
        ],
    )
    def test_field_of_another_shape_has_its_path_in_a_taskrun(self, message: str, expected: str) -> None:
        start = 'PodTemplate in version "v1" cannot be handled as a PodTemplate: '
        assert describe_template_error(BadRequestError(400, "BadRequest", start + message)) == expected


class Quota:
    """A quota of one namespace, and TaskRuns that try whenever they are admitted.

    `requests` counts the creations that the API server received.
    """

    def __init__(self, room: int) -> None:
        self.now = 0.0
        self.backoff = QuotaBackoff(lambda: self.now)
        self.room = room
        self.requests = 0
        self.created: list[Key] = []
        self.too_large: set[Key] = set()

    def reconcile(self, *keys: Key) -> None:
        """Try to create the pod of each TaskRun, and of those that are admitted because of it."""
        todo = list(keys)
        while todo:
            key = todo.pop(0)
            size = "large" if key in self.too_large else "small"
            if key in self.created or not self.backoff.may_create(key, size):
                continue
            self.requests += 1
            if self.room > 0 and key not in self.too_large:
                self.room -= 1
                self.created.append(key)
                todo += self.backoff.on_created(key)
            else:
                self.backoff.on_rejected(key, size, "exceeded quota")

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            self.reconcile(*self.backoff.due())

    def end_pod(self, *, is_counted: bool = True) -> None:
        """End a pod. The quota controller may count it a little longer."""
        self.room += is_counted
        self.reconcile(*self.backoff.on_pod_ended("a"))


def keys_of(count: int, namespace: str = "a") -> list[Key]:
    return [Key(namespace, f"load-{number}") for number in range(count)]


class TestQuotaBackoff:
    def test_full_namespace_sends_a_bounded_number_of_creations(self) -> None:
        quota = Quota(0)
        quota.reconcile(*keys_of(5000))
        assert quota.requests == 1
        quota.pass_time(60)
        assert quota.requests <= 12
        before = quota.requests
        quota.pass_time(600)
        assert quota.requests - before <= 60

    def test_full_namespace_admits_one_taskrun_for_each_ended_pod(self) -> None:
        quota = Quota(100)
        quota.reconcile(*keys_of(5000))
        assert len(quota.created) == 100
        quota.requests = 0
        for _ in range(4900):
            quota.end_pod()
        assert len(quota.created) == 5000
        assert quota.requests == 4900
        assert len(set(quota.created)) == 5000

    def test_quota_controller_that_is_late_costs_no_place_for_long(self) -> None:
        quota = Quota(100)
        quota.reconcile(*keys_of(1000))
        quota.pass_time(30)
        for _ in range(30):
            quota.end_pod(is_counted=False)
        quota.room = 30
        quota.pass_time(0.5)
        assert len(quota.created) == 130

    def test_raised_quota_is_used_within_one_pause(self) -> None:
        quota = Quota(0)
        quota.reconcile(*keys_of(500))
        quota.pass_time(300)
        quota.room, quota.requests = 400, 0
        quota.pass_time(10)
        assert len(quota.created) == 400
        assert quota.requests <= 410

    def test_taskruns_too_large_for_the_quota_do_not_delay_a_small_one(self) -> None:
        quota = Quota(10)
        small = Key("a", "small")
        quota.too_large = set(keys_of(1000))
        quota.reconcile(*keys_of(1000), small)
        quota.pass_time(2)
        assert quota.created == [small]

    def test_full_namespace_delays_no_other(self) -> None:
        quota = Quota(0)
        quota.reconcile(*keys_of(10))
        assert quota.backoff.may_create(Key("b", "load"), "small")

    def test_taskrun_whose_kept_pod_was_deleted_is_admitted_itself(self) -> None:
        quota = Quota(0)
        first, *others = keys_of(20)
        quota.reconcile(*others, first)
        assert quota.backoff.on_room_made(first) == [first]
        assert quota.backoff.on_room_made(first) == []
        quota.room = 1
        quota.reconcile(first)
        assert quota.created == [first]
        assert quota.backoff.on_room_made(Key("b", "load")) == []

    def test_admitted_taskrun_that_does_not_try_delays_no_other(self) -> None:
        quota = Quota(0)
        quota.reconcile(*keys_of(3))
        quota.now += 1
        assert len(quota.backoff.due()) == 1  # it is held meanwhile, for example
        quota.room = 3
        quota.pass_time(5)
        assert len(quota.created) == 2

    def test_namespace_is_forgotten_once_no_taskrun_waits(self) -> None:
        quota = Quota(0)
        quota.reconcile(*keys_of(3))
        quota.backoff.forget(Key("a", "load-0"))
        quota.room = 2
        quota.pass_time(10)
        assert quota.created == keys_of(3)[1:]
        assert not quota.backoff._full

    @given(
        st.lists(st.tuples(st.sampled_from(["try", "end", "pass", "forget", "raise"]), st.integers(0, 9)), max_size=100)
    )
    def test_waiting_taskruns_are_created_once_the_quota_has_room(self, steps: list[tuple[str, int]]) -> None:
        quota, wanted = Quota(2), set[Key]()
        for step, number in steps:
            key = keys_of(10)[number]
            match step:
                case "try":
                    wanted.add(key)
                    quota.reconcile(key)
                case "end" if quota.created:
                    quota.end_pod()
                case "pass":
                    quota.pass_time(number)
                case "forget":
                    wanted.discard(key)
                    quota.backoff.forget(key)
                case "raise":
                    quota.room += 1
                case _:
                    pass
        quota.room = 100
        quota.pass_time(60)
        assert wanted <= set(quota.created)
        assert not quota.backoff._full


class TestSize:
    def test_pods_that_differ_in_name_and_arguments_have_the_same_size(self) -> None:
        assert quota_size_of(pod(name="one", args=["1"])) == quota_size_of(pod(name="two", args=["2"]))

    @pytest.mark.parametrize(
        "spec",
        [
            {"priorityClassName": "high"},
            {"activeDeadlineSeconds": 5},
            {"initContainers": [{"name": "init", "resources": {"requests": {"cpu": "1"}}}]},
            {"containers": [{"name": "task", "resources": {"requests": {"cpu": "1"}}}]},
        ],
    )
    def test_pods_that_a_quota_distinguishes_have_different_sizes(self, spec: dict[str, Any]) -> None:
        base = pod()
        assert quota_size_of(base) != quota_size_of({"spec": base["spec"] | spec})

    @pytest.mark.parametrize("value", [None, 3, "x", ["x"], [None], [{"resources": 3}], {}])
    def test_size_of_a_pod_with_lists_of_wrong_types_is_defined(self, value: Any) -> None:
        assert quota_size_of({"spec": {"containers": value, "initContainers": value}})

    def test_size_is_short_whatever_the_resources_are(self) -> None:
        limits = {f"example.com/{number}": "1" for number in range(10_000)}
        assert len(quota_size_of(pod(resources={"limits": limits}))) == 16


def pod(**container: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "task", **container}]}}
