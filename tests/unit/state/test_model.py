"""Any sequence of calls: the state behaves as a plain dict does, through every encoding, and its versions only grow."""

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reattach.api.messages import ProblemCode
from reattach.state.codec import DurableState, from_data, to_data
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import (
    Clear,
    Delete,
    OperationRequest,
    Session,
    Set,
    Step,
    change,
    get,
    idempotent,
    list_records,
    open_state,
)
from reattach.state.values import stored_value_of

NOW = datetime(2026, 7, 30, tzinfo=UTC)
KEYS = st.sampled_from(["job_id", "a/b", "a_2Fb", "é", "x" * 300, "y" * 300])
VALUES = st.one_of(st.integers(), st.text(max_size=5), st.dictionaries(st.text(max_size=2), st.booleans(), max_size=2))


class Model(RuleBasedStateMachine):
    """`expected` is what a dict would hold: key -> (value, version)."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(1, "pod-1", "s0")
        self.fenced: list[Session] = []
        self.state, _ = open_state(DurableState(), self.session, NOW)
        self.expected: dict[str, tuple[Any, int]] = {}
        self.versions: set[int] = set()
        self.asked = 0

    def do(self, steps: list[Step]) -> ProblemCode | None:
        """As the server does: under a request id, and sometimes asked twice; the ConfigMap in between."""
        self.asked += 1
        request = OperationRequest(str(self.asked), "d")

        def act(state: DurableState) -> tuple[DurableState, bytes]:
            after, results = change(state, self.session, steps, NOW)
            return after, json.dumps([result.version for result in results]).encode()

        try:
            self.state, answer = idempotent(self.state, self.session, request, act)
        except RequestRejectedError as refused:
            return refused.code
        again, same = idempotent(from_data(to_data(self.state)), self.session, request, act)
        assert (again, same) == (self.state, answer)
        for version in json.loads(answer):
            if version is not None:
                assert version not in self.versions
                self.versions.add(version)
        return None

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: Any) -> None:
        assert self.do([Set(key, stored_value_of(value), None)]) is None
        self.expected[key] = (value, self.state.last_version)

    @rule(key=KEYS, value=VALUES)
    def create(self, key: str, value: Any) -> None:
        code = self.do([Set(key, stored_value_of(value), None, if_absent=True)])
        assert code is (ProblemCode.EXISTS if key in self.expected else None)
        if code is None:
            self.expected[key] = (value, self.state.last_version)

    @rule(key=KEYS, value=VALUES, offset=st.integers(-1, 1))
    def swap(self, key: str, value: Any, offset: int) -> None:
        _, version = self.expected.get(key, (None, 1))
        code = self.do([Set(key, stored_value_of(value), None, if_version=version + offset)])
        assert code is (None if key in self.expected and offset == 0 else ProblemCode.VERSION_MISMATCH)
        if code is None:
            self.expected[key] = (value, self.state.last_version)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.do([Delete(key)]) is None
        self.expected.pop(key, None)

    @rule()
    def clear(self) -> None:
        assert self.do([Clear()]) is None
        self.expected.clear()

    @rule(one=KEYS, other=KEYS, value=VALUES)
    def batch(self, one: str, other: str, value: Any) -> None:
        code = self.do([Delete(one), Set(other, stored_value_of(value), None, if_absent=True)])
        if other in self.expected and one != other:
            assert code is ProblemCode.EXISTS
        else:
            assert code is None
            self.expected.pop(one, None)
            self.expected[other] = (value, self.state.last_version)

    @rule(same_pod=st.booleans())
    def take_over(self, same_pod: bool) -> None:
        self.fenced.append(self.session)
        attempt = self.session.attempt + (0 if same_pod else 1)
        self.session = Session(attempt, f"pod-{attempt}", f"s{len(self.fenced)}")
        self.state, _ = open_state(self.state, self.session, NOW)

    @invariant()
    def holds_what_a_dict_would(self) -> None:
        records, total = list_records(from_data(to_data(self.state)), self.session)
        assert total == len(self.expected)
        assert {record.key: (json.loads(bytes(record.value)), record.version) for record in records} == self.expected

    @invariant()
    def the_fenced_stay_out(self) -> None:
        for session in self.fenced:
            for call in (lambda who: get(self.state, who, "job_id"), lambda who: open_state(self.state, who, NOW)):
                try:
                    call(session)
                except RequestRejectedError as refused:
                    assert refused.code is ProblemCode.FENCED  # noqa: PT017
                else:
                    raise AssertionError(f"{session} got in")


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
