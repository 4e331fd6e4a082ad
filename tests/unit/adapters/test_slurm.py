"""The pure parts of the Slurm adapter, on output and responses of a real cluster (22.05)."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from reattach.adapters.base import (
    Active,
    Cancelled,
    Failed,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.slurm import SlurmCommands, SlurmError, SlurmRest, commands
from reattach.adapters.slurm.adapter import Slurm
from reattach.adapters.slurm.commands import CommandResult, request_of
from reattach.adapters.slurm.records import (
    ACTIVE_STATES,
    FAILED_STATES,
    SlurmHandle,
    SlurmJob,
    SlurmRejection,
    first_of,
    handle_from,
    job_id_of_sbatch,
    of_handle,
    queue_of_sdiag,
    records_of_rest,
    records_of_sacct,
    records_of_squeue,
    refusal_of,
    refusal_of_sbatch,
    status_of,
)
from reattach.adapters.slurm.rest import body_of

TOKEN = "0b7e1f0a-5b39-5a3e-8f5c-2f8f3f1f0c11"
NAME = f"reattach-{TOKEN}"
DAYS = timedelta(days=30)
SUBMISSION = Submission(
    token=TOKEN, request={"script": "#!/bin/sh\ntrue", "job": {}}, key="load", generation=1, namespace="team", taskrun="nightly"
)  # fmt: skip
COMMANDED = dataclasses.replace(SUBMISSION, request={"script": "#!/bin/sh\ntrue"})

SDIAG = """Server thread count:  3
RPC queue enabled:    0
Agent queue size:     0
Agent count:          0
Agent thread count:   0
DBD Agent queue size: 4
"""
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
NO_PARTITION = """sbatch: error: invalid partition specified: nope
sbatch: error: Batch job submission failed: Invalid partition name specified
"""
NOT_CONNECTED = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n"
TOO_MANY = """sbatch: error: QOSMaxSubmitJobPerUserLimit
sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)
"""
NO_SCRIPT = """sbatch: error: This does not look like a batch script.  The first
sbatch: error: line must start with #! followed by the path to an interpreter.
sbatch: error: For instance: #!/bin/sh
"""
NO_OPTION = """sbatch: unrecognized option '--nope'
Try "sbatch --help" for more information
"""
META = {"plugin": {"type": "openapi/v0.0.38", "name": "Slurm OpenAPI v0.0.38"}}


def a_record(*states: str, job_id: int = 17, name: str = NAME, live: bool = True) -> SlurmJob:
    return SlurmJob(job_id, name, frozenset(states), live=live)


class TestHandles:
    @pytest.mark.parametrize("text, job_id, name", [("17", 17, None), (f"17/{NAME}", 17, NAME), (" 17 ", 17, None)])
    def test_a_handle_is_an_id_and_a_name(self, text: str, job_id: int, name: str | None) -> None:
        handle = handle_from(text)
        assert handle == SlurmHandle(job_id, name)
        assert str(handle) == text.strip()

    @pytest.mark.parametrize("text", ["", "0", "-1", "job", "17/", "17/a b", "17_3", "99999999999"])
    def test_handle_invalid_is_refused(self, text: str) -> None:
        assert handle_from(text) is None

    def test_handle_does_not_match_a_job_of_another_name(self) -> None:
        other = a_record("RUNNING", name="other")
        assert of_handle(SlurmHandle(17, NAME), [other]) is None
        assert of_handle(SlurmHandle(17), [other]) == other
        assert of_handle(SlurmHandle(18, NAME), [a_record("RUNNING")]) is None


class TestStates:
    @pytest.mark.parametrize("state", sorted(ACTIVE_STATES))
    def test_state_active_states_are_active(self, state: str) -> None:
        assert isinstance(status_of(a_record(state)), Active)

    @pytest.mark.parametrize("state", sorted(FAILED_STATES))
    def test_state_failed_states_are_failed(self, state: str) -> None:
        assert isinstance(status_of(a_record(state)), Failed)

    def test_state_flag_makes_the_job_active(self) -> None:
        assert isinstance(status_of(a_record("NODE_FAIL", "REQUEUED")), Active)
        assert isinstance(status_of(a_record("CANCELLED", "COMPLETING")), Active)

    def test_state_other_states_have_their_status(self) -> None:
        assert status_of(a_record("COMPLETED")) == Succeeded({"jobId": 17})
        assert isinstance(status_of(a_record("CANCELLED")), Cancelled)
        assert isinstance(status_of(a_record("REVOKED")), Unknown)
        assert isinstance(status_of(a_record("SOMETHING_NEW")), Unknown)

    def test_state_active_only_in_accounting_is_unknown(self) -> None:
        status = status_of(a_record("RUNNING", live=False))
        assert isinstance(status, Unknown)
        assert "runawayjobs" in status.message

    def test_first_of_several_jobs_prefers_active_then_succeeded(self) -> None:
        failed, running, done = (
            a_record("FAILED", job_id=1), a_record("RUNNING", job_id=3), a_record("COMPLETED", job_id=2),
        )  # fmt: skip
        assert first_of(NAME, [failed, done, running]) == running
        assert first_of(NAME, [failed, done]) == done
        assert first_of(NAME, [a_record("RUNNING", job_id=4), running]) == running
        assert first_of("other", [failed, done, running]) is None


class TestCommandOutput:
    def test_squeue(self) -> None:
        text = f"5|PENDING|PartitionDown|sbatch\n17|RUNNING|None|{NAME}\n18|PENDING|Priority|a|b\n"
        assert records_of_squeue(text) == [
            SlurmJob(5, "sbatch", frozenset({"PENDING"}), "PartitionDown"),
            SlurmJob(17, NAME, frozenset({"RUNNING"})),
            SlurmJob(18, "a|b", frozenset({"PENDING"}), "Priority"),
        ]
        assert records_of_squeue("") == []

    def test_sacct(self) -> None:
        text = f"1|COMPLETED|0:0|{NAME}\n2|CANCELLED by 1000|0:0|sbatch\n3|FAILED|3:0|sbatch\n"
        assert records_of_sacct(text) == [
            SlurmJob(1, NAME, frozenset({"COMPLETED"}), live=False),
            SlurmJob(2, "sbatch", frozenset({"CANCELLED"}), live=False),
            SlurmJob(3, "sbatch", frozenset({"FAILED"}), "exit code 3:0", live=False),
        ]

    def test_sdiag(self) -> None:
        assert queue_of_sdiag(SDIAG) == 4
        assert queue_of_sdiag("Agent queue size: 0\n") is None

    @pytest.mark.parametrize(
        "text, job_id", [("17\n", 17), ("17;test\n", 17), ("", None), ("Submitted batch job 17", None), ("0", None)]
    )
    def test_sbatch(self, text: str, job_id: int | None) -> None:
        assert job_id_of_sbatch(text) == job_id

    @pytest.mark.parametrize(
        "code, text, refusal",
        [
            (1, NO_PARTITION, SlurmRejection.FINAL),
            (1, NO_SCRIPT, SlurmRejection.FINAL),
            (255, NO_OPTION, SlurmRejection.FINAL),
            (255, "sbatch: error: Invalid --time specification\n", SlurmRejection.FINAL),
            (1, "sbatch: error: Batch script is empty!\n", SlurmRejection.FINAL),
            (1, NOT_CONNECTED, SlurmRejection.FOR_NOW),
            (1, TIMED_OUT, SlurmRejection.UNKNOWN),
            (1, "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received\n", SlurmRejection.UNKNOWN),
            (1, "sbatch: error: Batch job submission failed: Connection reset by peer\n", SlurmRejection.UNKNOWN),
            (1, "sbatch: error: Batch job submission failed: Something new\n", SlurmRejection.UNKNOWN),
            (1, "sbatch: error: Slurm job queue full, sleeping and retrying\n", SlurmRejection.UNKNOWN),
            (124, "", SlurmRejection.UNKNOWN),
            (137, NO_PARTITION, SlurmRejection.UNKNOWN),
            (-9, "", SlurmRejection.UNKNOWN),
            (255, "ssh: connect to host login port 22: Connection refused\n", SlurmRejection.UNKNOWN),
            (255, "Connection to login closed by remote host.\n", SlurmRejection.UNKNOWN),
            (None, "sbatch: lua: your project has 3 h left\nConnection to login closed by remote host.\n", SlurmRejection.UNKNOWN),
            (127, "sh: 1: timeout: not found\n", SlurmRejection.FINAL),
            (126, "timeout: failed to run command 'sbatch': Permission denied\n", SlurmRejection.FINAL),
            (1, TOO_MANY, SlurmRejection.FOR_NOW),
            (1, TOO_MANY.splitlines(keepends=True)[1], SlurmRejection.FINAL),
        ],
    )  # fmt: skip
    def test_sbatch_error_is_a_refusal_only_if_it_proves_no_job(
        self, code: int | None, text: str, refusal: SlurmRejection
    ) -> None:
        assert refusal_of_sbatch(code, text) is refusal


class TestErrorNumbers:
    @pytest.mark.parametrize("number", [2000, 2002, 2050, 2066, 9001])
    def test_error_number_of_the_controller_is_final(self, number: int) -> None:
        assert refusal_of(number) is SlurmRejection.FINAL

    @pytest.mark.parametrize("number", [1800, 1804, 1805, 2007, 2101, 2105])
    def test_error_number_of_a_temporary_error_is_for_now(self, number: int) -> None:
        assert refusal_of(number) is SlurmRejection.FOR_NOW

    @pytest.mark.parametrize("number", [-1, 0, 104, 1001, 1003, 1801, 1802, 5004, 5005])
    def test_error_number_of_the_transport_is_unknown(self, number: int) -> None:
        assert refusal_of(number) is SlurmRejection.UNKNOWN


class TestRequests:
    def test_script_and_options(self) -> None:
        script = "#!/bin/sh\n#SBATCH --time=5 -n 2\ntrue"
        assert request_of({"script": script, "options": ["--partition=main", "-N2"]}) == (
            script,
            ["--partition=main", "-N2"],
        )
        assert request_of({"script": script}) == (script, [])

    @pytest.mark.parametrize(
        "request_",
        [
            "true",
            {},
            {"script": 1},
            {"script": "x", "job": {}},
            {"script": "x", "options": "-n2"},
            {"script": "x", "options": [2]},
        ],
    )
    def test_request_invalid_is_rejected(self, request_: Any) -> None:
        with pytest.raises(Rejected):
            request_of(request_)

    @pytest.mark.parametrize(
        "option",
        ["--job-name=x", "--job-name", "--job=x", "-Jx", "-J", "--array=1-3", "--arr=1-3", "-a1-3", "--wait", "-W", "--wrap=true", "--clusters=b",
         "-Mb", "--test-only", "script.sh", "--", "-", ""],
    )  # fmt: skip
    def test_request_option_that_breaks_a_guarantee_is_rejected(self, option: str) -> None:
        with pytest.raises(Rejected):
            request_of({"script": "#!/bin/sh\ntrue", "options": [option]})

    @pytest.mark.parametrize(
        "option", ["--wait-all-nodes=1", "--account=a", "--time=5", "-t5", "--comment=a b", "--export=NONE"]
    )
    def test_request_similar_option_is_accepted(self, option: str) -> None:
        assert request_of({"script": "#!/bin/sh\ntrue", "options": [option]})[1] == [option]

    @pytest.mark.parametrize("line", ["--array=1-3", "-a 1-3", "hetjob", "packjob", "-n 2 --job-name=x"])
    def test_request_script_line_that_breaks_a_guarantee_is_rejected(self, line: str) -> None:
        with pytest.raises(Rejected):
            request_of({"script": f"#!/bin/sh\n#SBATCH {line}\ntrue"})

    def test_the_body_for_slurmrestd_carries_our_name(self) -> None:
        request = {"script": "#!/bin/sh\ntrue", "job": {"partition": "main"}}
        assert body_of(request, NAME) == {"script": "#!/bin/sh\ntrue", "job": {"partition": "main", "name": NAME}}
        assert "name" not in request["job"]

    @pytest.mark.parametrize(
        "request_", ["x", {"script": "x"}, {"job": {"name": "x"}}, {"job": {"array": "1-3"}}, {"job": {}, "jobs": [{}]}]
    )
    def test_request_body_that_breaks_a_guarantee_is_rejected(self, request_: Any) -> None:
        with pytest.raises(Rejected):
            body_of(request_, NAME)


def live_job(state: Any, name: str = NAME) -> dict[str, Any]:
    return {"job_id": 17, "name": name, "job_state": state, "state_reason": "None", "array_job_id": 0, "exit_code": 0}


def accounted_job(state: Any) -> dict[str, Any]:
    return {"job_id": 17, "name": NAME, "state": {"current": state, "reason": "None"}, "array": {"job_id": 0}}


class TestRest:
    """Responses of slurmrestd by path."""

    @staticmethod
    def jobs(responses: dict[str, tuple[int, Any]], accounting: timedelta | None = None) -> SlurmRest:
        def respond(request: httpx.Request) -> httpx.Response:
            assert request.headers["X-SLURM-USER-NAME"] == "task"
            assert request.headers["X-SLURM-USER-TOKEN"] == "t"
            status, body = responses[f"{request.method} {request.url.path}"]
            return httpx.Response(status, **({"text": body} if isinstance(body, str) else {"json": body}))

        return SlurmRest(
            "http://slurm.invalid/", user="task", token=lambda: "t\n", version="v0.0.38", accounting=accounting,
            transport=httpx.MockTransport(respond),
        )  # fmt: skip

    def submitted(self, status: int, body: Any) -> Submitted:
        return self.jobs({"POST /slurm/v0.0.38/job/submit": (status, body)}).submit(SUBMISSION)

    def test_states_are_strings_or_in_later_versions_lists(self) -> None:
        strings = records_of_rest([live_job("RUNNING")], live=True)
        assert strings == records_of_rest([live_job(["RUNNING"])], live=True)
        assert records_of_rest([accounted_job(["COMPLETED"])], live=False) == [a_record("COMPLETED", live=False)]

    def test_a_job_that_is_accepted_and_can_not_start_is_a_job(self) -> None:
        errors = [{"error_code": 2015, "error": "Requested partition configuration not available now"}]
        body = {"meta": META, "errors": errors, "job_id": 3, "step_id": "BATCH", "job_submit_user_msg": ""}
        assert self.submitted(200, body) == Submitted(f"3/{NAME}")

    @pytest.mark.parametrize("number", [2000, 2101, 2105, 5004])
    def test_rest_submit_id_next_to_an_error_is_a_job(self, number: int) -> None:
        body = {"job_id": 3, "errors": [{"error_number": number, "error": "Partition in DOWN state"}]}
        assert self.submitted(500, body) == Submitted(f"3/{NAME}")

    @pytest.mark.parametrize(
        "status, body",
        [
            (500, {"meta": META, "errors": [{"error_code": 2000, "error": "Invalid partition name specified"}]}),
            (400, {"errors": [{"description": 'Unknown key "nope"', "source": "hsearch_r"}, {"error_code": 9001, "error": "Failure during parsing"}]}),
            (404, ""),
        ],
    )  # fmt: skip
    def test_rest_submit_refusal_is_final(self, status: int, body: Any) -> None:
        with pytest.raises(Rejected) as rejected:
            self.submitted(status, body)
        assert not rejected.value.retriable

    @pytest.mark.parametrize("status", [401, 403])
    def test_rest_submit_with_refused_credentials_is_tried_again(self, status: int) -> None:
        with pytest.raises(Rejected) as rejected:
            self.submitted(status, "Authentication failure")
        assert rejected.value.credentials

    def test_rest_submit_unreachable_controller_is_a_refusal_for_now(self) -> None:
        with pytest.raises(Rejected) as rejected:
            self.submitted(
                500, {"errors": [{"error_code": 1800, "error": "Unable to contact slurm controller (connect failure)"}]}
            )
        assert rejected.value.retriable

    @pytest.mark.parametrize(
        "status, body",
        [
            (500, {"errors": [{"error_code": 5004, "error": "Socket timed out on send/recv operation"}]}),
            (500, {"errors": [{"error_code": 2000, "error": "…"}, {"error_code": 5004, "error": "…"}]}),
            (500, ""),
            (502, "Bad gateway"),
            (200, {"job_id": 0, "errors": []}),
            (200, "<html>"),
        ],
    )
    def test_submit_other_response_leaves_the_outcome_unknown(self, status: int, body: Any) -> None:
        with pytest.raises(SlurmError):
            self.submitted(status, body)

    def test_rest_status_of_unknown_handle_is_not_found(self) -> None:
        errors = [
            {
                "description": "Unable to find JobId=99",
                "error_number": 2017,
                "error": "Invalid job id specified",
                "source": "slurm_load_job",
            }
        ]
        jobs = self.jobs({"GET /slurm/v0.0.38/job/99": (500, {"errors": errors, "jobs": []})})
        assert isinstance(jobs.status("99"), NotFound)

    def test_rest_status_raises_if_the_controller_is_unreachable(self) -> None:
        errors = [
            {
                "description": "Unable to find JobId=3",
                "error_number": -1,
                "error": "Unspecified error",
                "source": "slurm_load_job",
            }
        ]
        with pytest.raises(SlurmError):
            self.jobs({"GET /slurm/v0.0.38/job/3": (500, {"errors": errors, "jobs": []})}).status("3")

    def with_accounting(self, queue: Any, *accounted: dict[str, Any]) -> SlurmRest:
        errors = (
            []
            if accounted
            else [{"description": "Nothing found", "error_number": 9003, "error": "Nothing found with query"}]
        )
        return self.jobs(
            {
                "GET /slurm/v0.0.38/jobs": (200, {"errors": [], "jobs": [live_job("RUNNING", "other")]}),
                "GET /slurm/v0.0.38/job/17": (500, {"errors": [{"error_number": 2017}], "jobs": []}),
                "GET /slurm/v0.0.38/diag": (200, {"errors": [], "statistics": {"agent_queue_size": 0, "dbd_agent_queue_size": queue}}),
                "GET /slurmdb/v0.0.38/jobs": (200, {"errors": errors, "jobs": list(accounted)}),
            },
            DAYS,
        )  # fmt: skip

    def test_rest_forgotten_job_is_found_in_accounting(self) -> None:
        for queue in (0, 4):
            found = self.with_accounting(queue, accounted_job("COMPLETED")).look_up(SUBMISSION)
            assert found == Submitted(f"17/{NAME}", existed=True)

    def test_rest_look_up_and_status_raise_while_accounting_lags(self) -> None:
        assert self.with_accounting(0).look_up(SUBMISSION) is None
        assert isinstance(self.with_accounting(0).status(f"17/{NAME}"), NotFound)
        for queue in (4, None):
            with pytest.raises(SlurmError, match="undelivered messages for slurmdbd"):
                self.with_accounting(queue).look_up(SUBMISSION)
            with pytest.raises(SlurmError, match="undelivered messages for slurmdbd"):
                self.with_accounting(queue).status(f"17/{NAME}")

    def test_rest_cancel_does_not_end_a_job_of_another_name(self) -> None:
        jobs = self.jobs({"GET /slurm/v0.0.38/job/17": (200, {"errors": [], "jobs": [live_job("RUNNING", "other")]})})
        jobs.cancel(f"17/{NAME}")
        jobs.cancel("not-a-handle")


class TestCommands:
    def test_filters_in_the_environment_hide_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SQUEUE_PARTITION", "other")
        monkeypatch.setenv("SBATCH_ACCOUNT", "team")
        program = "import json, os; print(json.dumps(dict(os.environ)))"
        environment = json.loads(
            SlurmCommands(accounting=None, via=(sys.executable, "-c", program))._run("squeue").stdout
        )
        assert "SQUEUE_PARTITION" not in environment
        assert environment["SBATCH_ACCOUNT"] == "team"

    @pytest.mark.parametrize("code", [0, 1, 124])
    def test_sbatch_id_is_a_job_for_any_exit_code(self, code: int) -> None:
        program = f"print(17); raise SystemExit({code})"
        assert SlurmCommands(accounting=None, via=(sys.executable, "-c", program)).submit(COMMANDED) == Submitted(
            f"17/{NAME}"
        )

    def test_sbatch_id_is_a_job_even_after_a_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "_COMMAND_SECONDS", 0.5)
        monkeypatch.setattr(commands, "_START_SECONDS", 0.5)
        says_and_hangs = SlurmCommands(accounting=None, via=("sh", "-c", "echo 17; exec sleep 60"))
        assert says_and_hangs.submit(COMMANDED) == Submitted(f"17/{NAME}")
        hangs = SlurmCommands(accounting=None, via=("sh", "-c", "exec sleep 60"))
        with pytest.raises(SlurmError, match="sbatch did not end within 1 s"):
            hangs.submit(COMMANDED)
        with pytest.raises(SlurmError, match="squeue did not end within 1 s"):
            hangs.look_up(COMMANDED)

    def test_ssh_requires_line(self) -> None:
        with pytest.raises(ValueError, match="needs line=True"):
            SlurmCommands(accounting=None, via=("/usr/bin/ssh", "login.example.org"))

    def test_sbatch_success_without_id_leaves_the_outcome_unknown(self) -> None:
        with pytest.raises(SlurmError):
            SlurmCommands(accounting=None, via=(sys.executable, "-c", "pass")).submit(COMMANDED)

    def test_a_line_is_quoted(self) -> None:
        program = "import json, sys; print(json.dumps(sys.argv[1:]))"
        ended = SlurmCommands(accounting=None, via=(sys.executable, "-c", program), line=True)._run(
            "sbatch", "--comment=a b'c"
        )
        [line] = json.loads(ended.stdout)
        assert shlex.split(line)[3:] == ["19", "sbatch", "--comment=a b'c"]

    @pytest.mark.parametrize("line", [False, True])
    def test_a_command_says_how_it_ended(self, line: bool) -> None:
        via = ("sh", "-c") if line else ("env",)
        ended = SlurmCommands(accounting=None, via=via, line=line)._run("sh", "-c", "echo out; echo err >&2; exit 3")
        assert ended == CommandResult(3, "out\n", "err\n")

    @pytest.mark.parametrize("code", [0, 1, 255])
    def test_sbatch_message_after_a_broken_connection_is_not_a_refusal(self, code: int) -> None:
        """Print a plugin's message and exit with a code of ssh that sbatch also uses."""
        way = ("sh", "-c", f"echo 'sbatch: lua: your project has 3 h left' >&2; exit {code}")
        with pytest.raises(SlurmError, match="the connection broke"):
            SlurmCommands(accounting=None, via=way).submit(COMMANDED)

    def test_sbatch_missing_program_is_a_rejection(self) -> None:
        with pytest.raises(Rejected, match="No such file") as rejected:
            SlurmCommands(accounting=None, via=("env", "PATH=/usr/bin:/bin")).submit(COMMANDED)
        assert not rejected.value.retriable


@pytest.mark.parametrize(
    "made",
    [
        SlurmCommands,
        lambda **given: SlurmRest("http://x", user="u", token=str, version="v", **given),
    ],
)
def test_capabilities_declare_only_slurms_guarantees(made: Callable[..., Slurm]) -> None:
    settling = timedelta(seconds=60)
    assert made(accounting=None).capabilities.look_up == Lookup(settling, timedelta(seconds=300))
    assert made(accounting=DAYS).capabilities.look_up == Lookup(settling, DAYS)
    assert made(accounting=timedelta(0)).capabilities.look_up == Lookup(settling, timedelta(seconds=300))
    assert (made(accounting=None).capabilities.client_name, made(accounting=None).capabilities.token) == (None, None)
