"""A whole life that is held, told, answered and followed by `kubectl reattach` alone: the real operator, state API and API server."""

import pytest

from cli_session import CliUser, grant
from controlplane import ControlPlane
from operator_process import Stage
from taskscripts import Tasks, evicted
from waiting import wait_until

SLOW = 150
FAST = {"initialSeconds": 1, "jitterPercent": 0}


@pytest.fixture(scope="module")
def cli_user(control_plane: ControlPlane, stage: Stage) -> CliUser:
    return grant(control_plane, stage.namespace, "edit")


def wait_until_held(cli_user: CliUser, name: str) -> None:
    assert cli_user("wait", name, "--timeout", f"{SLOW}s").code == 5


@pytest.mark.parametrize(
    "flags, decision",
    [(["--adopt", "job-7"], "Reattach"), (["--resubmit"], "Submit")],
    ids=["adopted", "resubmitted"],
)
def test_a_held_submission_is_told_answered_and_goes_on(
    stage: Stage, tasks: Tasks, cli_user: CliUser, flags: list[str], decision: str
) -> None:
    name = f"told-{decision.lower()}"
    stage.run(name, lambda attempt: tasks.ask if attempt == 1 else tasks.finish)
    wait_until_held(cli_user, name)
    story = cli_user("explain", name)
    assert story.out.startswith(f"{name} is held: waiting for a resolution.\n")
    assert "the external system is unavailable" in story.out
    [command] = [line for line in story.out.splitlines() if flags[0] in line]
    words = command.strip().replace("HANDLE", flags[-1]).split()
    assert words[:2] == ["kubectl", "reattach"]
    answered = cli_user(*words[2:])
    assert answered.code == 0, answered.err
    assert cli_user("wait", name, "--for", "outcome", "--timeout", f"{SLOW}s").code == 0
    assert tasks.intents[name, 2]["decision"] == decision
    end = cli_user("explain", name)
    assert end.out.startswith(f"{name} succeeded ")
    assert "What you can do" not in end.out
    assert cli_user("resolve", name, *flags).code == 1


def test_a_held_submission_is_answered_with_the_end(stage: Stage, tasks: Tasks, cli_user: CliUser) -> None:
    stage.run("told-fail", lambda _: tasks.ask)
    wait_until_held(cli_user, "told-fail")
    assert cli_user("resolve", "told-fail", "--fail").code == 0
    result = cli_user("wait", "told-fail", "--for", "outcome", "--timeout", f"{SLOW}s")
    assert (result.code, "FailedByResolution" in result.out) == (0, True)
    assert cli_user("wait", "told-fail").code == 3


def test_a_budget_is_granted_once_more(stage: Stage, tasks: Tasks, cli_user: CliUser) -> None:
    first = tasks.submit_and(evicted)
    retry = {"budgets": {"disruption": 0}, "backoff": FAST}
    stage.run("told-budget", lambda attempt: first if attempt == 1 else tasks.finish, retry=retry)
    wait_until_held(cli_user, "told-budget")
    assert "job-1 (load) continues in the external system" in cli_user("explain", "told-budget").out
    assert cli_user("resolve", "told-budget", "--continue").code == 0
    assert cli_user("wait", "told-budget", "--for", "outcome", "--timeout", f"{SLOW}s").code == 0
    assert tasks.intents["told-budget", 2]["decision"] == "Reattach"


def test_a_deleted_run_with_an_unresolved_intent_is_let_go(stage: Stage, tasks: Tasks, cli_user: CliUser) -> None:
    def intend_and_stay(containers: object) -> None:
        containers.run()  # type: ignore[attr-defined]
        tasks.intended(containers)  # type: ignore[arg-type]

    stage.run("let-go", lambda _: intend_and_stay)
    wait_until(lambda: "Intended" in cli_user("explain", "let-go").out, seconds=SLOW, what="the intent is stored")
    stage.control_plane.call("DELETE", f"/apis/reattach.dev/v1alpha1/namespaces/{stage.namespace}/taskruns/let-go")
    wait_until(lambda: "being deleted, and held" in cli_user("explain", "let-go").out, seconds=SLOW, what="it is held")
    result = cli_user("release", "let-go", "--yes")
    assert result.code == 0, result.err
    assert "load, generation 1: handle not known (Intended)" in result.out
    wait_until(lambda: "There is no TaskRun" in cli_user("explain", "let-go").err, seconds=SLOW, what="it is gone")
