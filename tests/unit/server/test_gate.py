"""Rates, the cache of accepted tokens, whose pod a pod is, and the command line."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from reattach.api.messages import DEFAULT_RETENTION_SECONDS, ProblemCode
from reattach.api.names import LABEL_ATTEMPT, LABEL_PURPOSE, LABEL_TASKRUN
from reattach.api.objects import ObjectMeta, OwnerReference
from reattach.api.taskrun import AttemptPurpose
from reattach.cluster import ClusterError, NotFoundError, UnavailableError
from reattach.server.__main__ import from_arguments
from reattach.server.application import EVIDENCE_ROUTES, AuthGate
from reattach.server.authentication import CACHED_MAX, Authenticator, caller_of
from reattach.server.config import Rate, ServerConfig
from reattach.server.metrics import ServerMetrics
from reattach.server.problems import RateLimitedError
from reattach.server.rate_limit import KEYS_MAX, RateLimit
from reattach.state import RequestRejectedError, RunReference

UID = "0c2b7d7e-1111-2222-3333-444444444444"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestRateLimit:
    def test_a_burst_passes_and_then_one_at_a_time(self) -> None:
        clock = Clock()
        limit = RateLimit(Rate(per_second=2, burst=3), clock=clock)
        assert [limit.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
        clock.now += 0.25
        assert limit.take("a") == pytest.approx(0.25)
        clock.now += 0.25
        assert limit.take("a") == 0
        assert limit.take("a") > 0

    def test_keys_do_not_share(self) -> None:
        limit = RateLimit(Rate(per_second=1, burst=1), clock=Clock())
        assert [limit.take("a"), limit.take("b")] == [0, 0]
        assert limit.take("a") > 0

    def test_rest_does_not_add_up_beyond_a_burst(self) -> None:
        clock = Clock()
        limit = RateLimit(Rate(per_second=1, burst=2), clock=clock)
        limit.take("a")
        clock.now += 3600
        assert [limit.take("a") > 0 for _ in range(3)] == [False, False, True]

    def test_keys_that_came_to_rest_are_forgotten(self) -> None:
        clock = Clock()
        limit = RateLimit(Rate(per_second=1, burst=1), clock=clock)
        for number in range(KEYS_MAX):
            limit.take(str(number))
        clock.now += 2
        limit.take("new")
        assert len(limit._full_at) == 1

    def test_rate_limit_with_more_keys_than_it_may_hold_forgets_the_fullest(self) -> None:
        clock = Clock()
        limit = RateLimit(Rate(per_second=1, burst=10), clock=clock)
        limit.take("busy", 10)
        for number in range(KEYS_MAX + 10):
            limit.take(str(number))
        assert len(limit._full_at) <= KEYS_MAX
        assert limit.take("busy") > 0

    def test_rate_limit_after_give_back_admits_again(self) -> None:
        limit = RateLimit(Rate(per_second=1, burst=1), clock=Clock())
        limit.take("a")
        limit.give_back("a")
        assert limit.take("a") == 0
        assert limit.take("a") > 0

    def test_rate_limit_with_a_cost_above_the_balance_lets_the_next_call_wait_for_the_debt(self) -> None:
        clock = Clock()
        limit = RateLimit(Rate(per_second=2, burst=10), clock=clock)
        assert limit.take("a", 16) == 0
        assert limit.take("a", 16) == pytest.approx(3.5)
        clock.now += 3.5
        assert limit.take("a") == 0

    def test_rate_limit_keeps_a_reserve_for_calls_that_need_less(self) -> None:
        limit = RateLimit(Rate(per_second=1, burst=10), clock=Clock())
        assert limit.take("a", 5, least=6) == 0
        assert limit.take("a", 1, least=6) == pytest.approx(1)
        assert limit.take("a", 1) == 0


class TestWhosePod:
    owner = OwnerReference(api_version="reattach.dev/v1alpha1", kind="TaskRun", name="load", uid=UID, controller=True)
    pod = ObjectMeta(
        name="load-0c2b7-2",
        namespace="team",
        uid="pod-uid",
        labels={LABEL_TASKRUN: "load", LABEL_ATTEMPT: "2"},
        owner_references=(OwnerReference(kind="ReplicaSet", name="other"), owner),
    )

    def test_an_attempt_is_known_by_controller_labels_and_name(self) -> None:
        caller = caller_of(self.pod)
        assert caller.run == RunReference(namespace="team", name="load", uid=UID)
        assert (caller.attempt, caller.pod_name, caller.pod_uid) == (2, "load-0c2b7-2", "pod-uid")
        assert caller.purpose is AttemptPurpose.RUN

    def test_purpose_of_a_pod_is_in_its_label(self) -> None:
        labels = {**self.pod.labels, LABEL_PURPOSE: "Cleanup"}
        caller = caller_of(msgspec.structs.replace(self.pod, labels=labels))
        assert caller.purpose is AttemptPurpose.CLEANUP

    @pytest.mark.parametrize(
        "changes",
        [
            {"owner_references": ()},
            {"owner_references": (msgspec.structs.replace(owner, controller=False),)},
            {"owner_references": (msgspec.structs.replace(owner, kind="Job"),)},
            {"owner_references": (msgspec.structs.replace(owner, api_version="reattach.dev/v2"),)},
            {"owner_references": (msgspec.structs.replace(owner, api_version="evil.example/v1alpha1"),)},
            {"owner_references": (msgspec.structs.replace(owner, uid="ffffffff" + UID[8:]),)},
            {"owner_references": (msgspec.structs.replace(owner, name="other"),)},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "2", LABEL_PURPOSE: ""}},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "2", LABEL_PURPOSE: "cleanup"}},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "2", LABEL_PURPOSE: "Other"}},
            {"labels": {LABEL_TASKRUN: "load"}},
            {"labels": {LABEL_TASKRUN: "other", LABEL_ATTEMPT: "2"}},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "3"}},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "0"}, "name": "load-0c2b7-0"},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "-2"}},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "²"}},
            {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: ""}},
            {"name": "load-0c2b7-3"},
            {"name": "load"},
        ],
    )
    def test_caller_of_a_pod_without_label_owner_or_name_is_rejected(self, changes: Mapping[str, Any]) -> None:
        with pytest.raises(RequestRejectedError) as refused:
            caller_of(msgspec.structs.replace(self.pod, **changes))
        assert refused.value.code is ProblemCode.NOT_A_TASK_POD


class Api:
    """An API server that accepts every token as one of `TestWhosePod.pod`, but for what a test changes."""

    def __init__(self) -> None:
        self.reviews = 0
        self.error: ClusterError | None = None
        self.audiences = ["reattach.dev"]
        self.username = "system:serviceaccount:team:default"
        self.pod_uid = "pod-uid"

    async def create(self, _path: str, body: Mapping[str, Any]) -> bytes:
        self.reviews += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        assert body["spec"]["audiences"] == ["reattach.dev"]
        extra = {
            "authentication.kubernetes.io/pod-name": ["load-0c2b7-2"],
            "authentication.kubernetes.io/pod-uid": [self.pod_uid],
        }
        user = {"username": self.username, "extra": extra}
        return json.dumps({"status": {"authenticated": True, "audiences": self.audiences, "user": user}}).encode()

    async def get(self, path: str, *, metadata_only: bool) -> bytes:
        assert metadata_only
        if path != "/api/v1/namespaces/team/pods/load-0c2b7-2":
            raise NotFoundError(404, "NotFound", path)
        return msgspec.json.encode({"metadata": TestWhosePod.pod})


class TestAuthenticator:
    def authenticator(self, api: Api, clock: Clock) -> Authenticator:
        return Authenticator(api, ServerMetrics(), seconds=60, clock=clock)  # type: ignore[arg-type]

    async def test_what_was_accepted_holds_for_60_seconds(self) -> None:
        api, clock = Api(), Clock()
        authenticator = self.authenticator(api, clock)
        for seconds, reviews in [(0, 1), (59, 1), (1, 2)]:
            clock.now += seconds
            assert (await authenticator.authenticate("Bearer t")).attempt == 2
            assert api.reviews == reviews

    async def test_it_holds_for_that_token_alone(self) -> None:
        api = Api()
        authenticator = self.authenticator(api, Clock())
        await authenticator.authenticate("Bearer one")
        await authenticator.authenticate("bearer  one ")
        assert authenticator.cached("Bearer other") is None
        await authenticator.authenticate("Bearer other")
        assert api.reviews == 2

    async def test_an_error_of_the_api_server_is_no_refusal_and_not_kept(self) -> None:
        api = Api()
        authenticator = self.authenticator(api, Clock())
        api.error = UnavailableError(0, "NoAnswer", "down")
        with pytest.raises(UnavailableError):
            await authenticator.authenticate("Bearer t")
        api.error = None
        assert (await authenticator.authenticate("Bearer t")).attempt == 2

    async def test_not_more_than_so_many_are_kept(self) -> None:
        authenticator = self.authenticator(Api(), Clock())
        for number in range(CACHED_MAX + 10):
            await authenticator.authenticate(f"Bearer {number}")
        assert len(authenticator._accepted) == CACHED_MAX
        assert authenticator.cached("Bearer 0") is None

    @pytest.mark.parametrize(
        "changes, code",
        [
            ({"audiences": []}, ProblemCode.UNAUTHENTICATED),
            ({"audiences": ["https://kubernetes.default.svc"]}, ProblemCode.UNAUTHENTICATED),
            ({"pod_uid": "another"}, ProblemCode.UNAUTHENTICATED),
            ({"username": "system:serviceaccount:other:default"}, ProblemCode.UNAUTHENTICATED),
            ({"username": "alice"}, ProblemCode.NOT_A_TASK_POD),
            ({"pod_uid": ""}, ProblemCode.NOT_A_TASK_POD),
        ],
    )
    async def test_only_a_token_of_our_audience_bound_to_a_pod_that_exists_is_accepted(
        self, changes: Mapping[str, Any], code: ProblemCode
    ) -> None:
        api = Api()
        for name, value in changes.items():
            setattr(api, name, value)
        with pytest.raises(RequestRejectedError) as refused:
            await self.authenticator(api, Clock()).authenticate("Bearer t")
        assert refused.value.code is code

    @pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic dDp0", "t"])
    async def test_without_a_bearer_token_nobody_is_asked(self, header: str | None) -> None:
        api = Api()
        with pytest.raises(RequestRejectedError, match="Authorization: Bearer <pod token>"):
            await self.authenticator(api, Clock()).authenticate(header)
        assert api.reviews == 0


def a_request(header: str | None, address: str = "10.0.0.1", route: tuple[str, str] = ("GET", "/v1/state")) -> Any:
    method, path = route
    match_info = SimpleNamespace(route=SimpleNamespace(resource=SimpleNamespace(canonical=path)))
    headers = {"Authorization": header} if header else {}
    return SimpleNamespace(headers=headers, remote=address, method=method, match_info=match_info)


class TestAuthGate:
    """The address may have 20 refused requests at once."""

    def gate(self, api: Api) -> AuthGate:
        return AuthGate(api, ServerConfig(tls_cert=Path(), tls_key=Path()), ServerMetrics(), Clock())  # type: ignore[arg-type]

    async def codes(self, gate: AuthGate, headers: Iterable[str | None], address: str = "10.0.0.1") -> Counter[str]:
        """Send all requests at once, and count the problem codes."""

        async def send(header: str | None) -> str:
            request = a_request(header, address)
            try:
                await gate.admit(request)
            except (RequestRejectedError, UnavailableError) as error:
                return error.code.value if isinstance(error, RequestRejectedError) else "unavailable"
            return "admitted"

        return Counter(await asyncio.gather(*[send(header) for header in headers]))

    async def test_auth_gate_with_200_bad_tokens_at_once_calls_the_api_server_20_times(self) -> None:
        api = Api()
        api.audiences = []
        codes = await self.codes(self.gate(api), [f"Bearer {number}" for number in range(200)])
        assert codes == {"unauthenticated": 20, "rate-limited": 180}
        assert api.reviews == 20

    async def test_auth_gate_counts_requests_without_a_token(self) -> None:
        gate = self.gate(Api())
        assert await self.codes(gate, [None] * 30) == {"unauthenticated": 20, "rate-limited": 10}
        assert await self.codes(gate, ["Bearer good"]) == {"rate-limited": 1}
        assert await self.codes(gate, ["Bearer good"], "10.0.0.2") == {"admitted": 1}

    async def test_auth_gate_gives_the_charge_of_a_good_token_back(self) -> None:
        gate = self.gate(Api())
        for number in range(80):
            assert await self.codes(gate, [f"Bearer {number}"]) == {"admitted": 1}

    async def test_auth_gate_charges_requests_that_share_one_review_once(self) -> None:
        assert await self.codes(self.gate(Api()), ["Bearer good"] * 60) == {"admitted": 60}

    async def test_auth_gate_charges_what_the_api_server_did_not_review(self) -> None:
        api = Api()
        api.error = UnavailableError(0, "NoAnswer", "down")
        gate = self.gate(api)
        codes = await self.codes(gate, [f"Bearer {number}" for number in range(50)])
        assert codes == {"unavailable": 20, "rate-limited": 30}
        with pytest.raises(RateLimitedError, match="whose token was refused, or could not be reviewed"):
            await gate.admit(a_request("Bearer good"))

    async def test_auth_gate_reviews_a_known_token_again_whatever_others_of_its_address_send(self) -> None:
        api = Api()
        clock = Clock()
        gate = AuthGate(api, ServerConfig(tls_cert=Path(), tls_key=Path()), ServerMetrics(), clock)  # type: ignore[arg-type]
        assert await self.codes(gate, ["Bearer good"]) == {"admitted": 1}
        clock.now += 90
        await self.codes(gate, [None] * 30)
        assert await self.codes(gate, ["Bearer good", "Bearer new"]) == {"admitted": 1, "rate-limited": 1}
        assert api.reviews == 2
        clock.now += 90
        api.audiences = []
        await self.codes(gate, [None] * 30)
        codes = [await self.codes(gate, ["Bearer good"]) for _ in range(2)]
        assert codes == [{"unauthenticated": 1}, {"rate-limited": 1}]

    async def test_auth_gate_keeps_a_part_of_the_burst_for_handles_and_outcomes(self) -> None:
        gate = self.gate(Api())
        assert await self.codes(gate, ["Bearer good"] * 110) == {"admitted": 90, "rate-limited": 20}
        for route in EVIDENCE_ROUTES:
            await gate.admit(a_request("Bearer good", route=route))
        for _ in range(10 - len(EVIDENCE_ROUTES)):
            await gate.admit(a_request("Bearer good", route=("PUT", "/v1/jobs/{key}/handle")))
        with pytest.raises(RateLimitedError, match="too many requests of TaskRun load"):
            await gate.admit(a_request("Bearer good", route=("PUT", "/v1/jobs/{key}/handle")))


class TestArguments:
    FILES = ("--tls-cert", "a", "--tls-key", "b")

    def test_all_but_the_certificate_has_a_default(self) -> None:
        settings, level, kubeconfig = from_arguments(self.FILES)
        assert (settings.port, settings.health_port, settings.watch_namespaces) == (8443, 8080, frozenset())
        assert settings.default_retention_seconds == DEFAULT_RETENTION_SECONDS
        assert (level, kubeconfig) == ("INFO", None)

    def test_lists_and_rates_are_read(self) -> None:
        settings, _, _ = from_arguments(
            [*self.FILES, "--watch-namespaces", "a, b,", "--taskrun-rate", "0.5:3", "--default-retention", "0"]
        )
        assert settings.watch_namespaces == {"a", "b"}
        assert settings.taskrun_rate == Rate(0.5, 3)
        assert settings.default_retention_seconds == 0

    def test_connection_limits_have_defaults_that_a_flag_replaces(self) -> None:
        settings, _, _ = from_arguments(self.FILES)
        assert (settings.connections_per_address, settings.connections) == (64, 400)
        assert (settings.first_request_seconds, settings.idle_seconds) == (5, 10)
        flags = ("--connections-per-address", "8", "--connections", "9", "--idle-timeout", "0.5")
        settings, _, _ = from_arguments([*self.FILES, *flags, "--first-request-timeout", "2"])
        assert (settings.connections_per_address, settings.connections) == (8, 9)
        assert (settings.first_request_seconds, settings.idle_seconds) == (2, 0.5)

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            (*FILES, "--connections", "0"),
            (*FILES, "--connections-per-address", "-1"),
            (*FILES, "--idle-timeout", "0"),
            (*FILES, "--first-request-timeout", "inf"),
            (*FILES, "--default-retention", "-1"),
            (*FILES, "--default-retention", "x"),
            (*FILES, "--taskrun-rate", "0:3"),
            (*FILES, "--taskrun-rate", "3"),
            (*FILES, "--namespace-rate", "1:0"),
            (*FILES, "--namespace-bytes-rate", "524288:4194303"),
            (*FILES, "--retention", "1"),
        ],
    )
    def test_anything_else_is_refused(self, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            from_arguments(arguments)
        assert "reattach-server: error:" in capsys.readouterr().err
