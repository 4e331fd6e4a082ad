"""What a task is told where a call failed for reasons that are not in the call."""

import msgspec
import pytest

from reattach.api.messages import Problem
from reattach.cluster import ClusterError, ForbiddenError, InvalidError, UnavailableError
from reattach.server.problems import response_of

QUOTA = 'configmaps "load-01234-state" is forbidden: exceeded quota: few, requested: count/configmaps=1, used: 5, limited: 5'


def told(error: Exception) -> Problem:
    _, response = response_of(error)
    assert isinstance(response.body, bytes)
    return msgspec.json.decode(response.body, type=Problem)


@pytest.mark.parametrize("error", [ForbiddenError(403, "Forbidden", QUOTA), InvalidError(422, "Invalid", QUOTA)])
def test_what_the_api_server_refuses_is_told_in_its_own_words_and_may_be_asked_again(error: ClusterError) -> None:
    problem = told(error)
    assert (problem.status, problem.code) == (503, "unavailable")
    assert problem.detail.endswith(QUOTA)


def test_a_refusal_of_many_words_is_cut() -> None:
    assert len(told(ForbiddenError(403, "Forbidden", "x" * 9000)).detail) < 500


def test_what_else_is_wrong_with_it_is_for_the_log_of_the_state_api_alone() -> None:
    assert "10.0.0.7" not in told(UnavailableError(500, "InternalError", "etcd at 10.0.0.7 is gone")).detail
