"""The installed program: as kubectl's plugin, completed by kubectl and by bash, with kubectl's flags."""

import contextlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from cli_session import CliUser
from controlplane import KUBE, REPOSITORY, ControlPlane
from stateapi import Server, Task

COLOUR = "\x1b["

Run = Callable[..., subprocess.CompletedProcess[str]]


def scripts() -> dict[str, str]:
    """Ours of the programs that pyproject.toml installs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return {name: target for name, target in project["scripts"].items() if name.startswith("kubectl")}


def on_terminal(*command: str, **environment: str) -> str:
    """What a program shows on a terminal of its own, as stdout."""
    ours, its = os.openpty()
    try:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=its, stdout=its, stderr=its)
    finally:
        os.close(its)
    shown = b""
    with (
        os.fdopen(ours, "rb", buffering=0) as terminal,
        contextlib.suppress(OSError),
    ):  # EIO: nobody has it open any more
        while piece := terminal.read(4096):
            shown += piece
    assert process.wait(60) == 0, shown
    return shown.decode()


@pytest.fixture
def run(tmp_path: Path, viewer: CliUser) -> Run:
    """Run a program with the plugin, its completion and kubectl on the PATH, as the viewer."""
    for name, target in scripts().items():
        module, function = target.split(":")
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        program.chmod(0o755)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {KUBE} kubectl "$@"\n')
    kubectl.chmod(0o755)

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        defaults = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "KUBECONFIG": str(viewer.kubeconfig),
            "HOME": str(tmp_path),
        }
        return subprocess.run(
            command,
            env={**os.environ, **defaults, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def test_both_programs_are_installed_under_the_names_that_kubectl_looks_for() -> None:
    found = scripts()
    assert set(found) == {"kubectl-reattach", "kubectl_complete-reattach"}
    for target in found.values():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function))


def test_kubectl_runs_it_as_a_plugin(run: Run, task: Task) -> None:
    result = run("kubectl", "reattach", "explain", "load")
    assert result.returncode == 0, result.stderr
    assert f"load in namespace {task.namespace}" in result.stdout
    assert run("kubectl", "reattach", "explain", "laod").returncode == 1
    version = run("kubectl", "reattach", "version").stdout
    assert version.startswith("kubectl reattach 0.")
    # Neither needs a cluster.
    assert run("kubectl", "reattach", "--version", KUBECONFIG="/absent").stdout == version


def test_flags_count_before_and_after_the_command(run: Run, task: Task) -> None:
    for command in (["-n", "elsewhere", "explain", "load"], ["explain", "load", "-n", "elsewhere"]):
        result = run("kubectl", "reattach", *command)
        assert result.returncode == 1
        assert "in namespace elsewhere" in result.stderr
    result = run("kubectl", "reattach", "-n", "elsewhere", "explain", "load", "-n", task.namespace)
    assert result.returncode == 0, result.stderr


def test_context_and_kubeconfig_are_kubectls(run: Run, control_plane: ControlPlane, task: Task, tmp_path: Path) -> None:
    result = run("kubectl", "reattach", "explain", "load", "--context", "other")
    assert result.stderr == "error: There is no context 'other' in the kubeconfig; it has: tests.\n"
    assert run("kubectl", "reattach", "explain", "load", "--context", "tests").returncode == 0
    result = run("kubectl", "reattach", "explain", "load", "--kubeconfig", str(tmp_path / "none"))
    assert result.stderr.startswith(f"error: There is no kubeconfig at {tmp_path}/none;")
    empty = tmp_path / "empty"
    empty.write_text("apiVersion: v1\nkind: Config\n")
    several = f"{empty}:{control_plane.kubeconfig(namespace=task.namespace)}"
    assert run("kubectl", "reattach", "explain", "load", KUBECONFIG=several).returncode == 0


def test_who_may_impersonate_acts_as_another(run: Run, control_plane: ControlPlane, task: Task) -> None:
    admin = str(control_plane.kubeconfig(namespace=task.namespace))
    result = run(
        "kubectl", "reattach", "explain", "load", "--as", "ann", "--as-group", "a", "--as-group", "b", KUBECONFIG=admin
    )
    assert result.stderr.startswith("error: ann lacks the right to get taskruns.reattach.dev")
    result = run(
        "kubectl", "reattach", "explain", "load", "--as", "ann", "--as-group", "system:masters", KUBECONFIG=admin
    )
    assert result.returncode == 0, result.stderr


def test_an_api_server_that_is_away_is_one_sentence(run: Run, viewer: CliUser, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.write_text(viewer.kubeconfig.read_text().replace(viewer.control_plane.url, "https://127.0.0.1:1"))
    result = run("kubectl", "reattach", "explain", "load", KUBECONFIG=str(away))
    assert result.returncode == 1
    assert result.stderr.startswith("error: https://127.0.0.1:1 can't be reached or did not respond in time")
    assert len(result.stderr.splitlines()) == 1
    assert "ConnectionKey" not in result.stderr


KUBECONFIG = """
current-context: here
contexts:
- {name: here, context: {cluster: here, user: me}}
users:
- {name: me, user: {token: secret}}
clusters:
- {name: here, cluster: {server: "https://127.0.0.1:1", certificate-authority-data: aGVsbG8=}}
"""


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "is not a valid kubeconfig"),
        ("- a list\n", "is not a valid kubeconfig"),
        ("a text\n", "is not a valid kubeconfig"),
        ("clusters: 5\n" + KUBECONFIG.replace("clusters", "others"), "is not a valid kubeconfig"),
        ("current-context: {", "can't be used"),
        (KUBECONFIG, "The certificates in the kubeconfig"),
    ],
    ids=["empty", "list", "text", "number", "no YAML", "no certificate"],
)
def test_a_kubeconfig_that_is_none_is_one_sentence(run: Run, tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "config"
    file.write_text(content)
    result = run("kubectl-reattach", "explain", "load", "--kubeconfig", str(file))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert says in result.stderr


def test_an_empty_file_among_several_says_nothing(run: Run, viewer: CliUser, task: Task, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    result = run("kubectl-reattach", "explain", task.name, KUBECONFIG=f"{tmp_path}/empty:{viewer.kubeconfig}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["trun/load", "taskrun/load", "taskruns/load", "taskrun.reattach.dev/load"])
def test_a_name_may_come_as_kubectl_prints_it(run: Run, task: Task, name: str) -> None:
    assert run("kubectl-reattach", "explain", name).returncode == 0


def test_wrong_usage_has_a_code_of_its_own(run: Run) -> None:
    for command in (
        ["explain"],
        ["explain", ""],
        ["explain", "pod/load"],
        ["explain", ".."],
        ["nothing"],
        ["wait", "load", "--timeout", "soon"],
        ["state", "set", "load"],
        ["state", "set", "load", "k", "1", "--if-version", "-5"],
    ):
        result = run("kubectl", "reattach", *command)
        assert result.returncode == 2, result.stderr
        assert result.stderr


def test_a_reader_that_goes_away_ends_it_silently_as_sigpipe_ends_others(run: Run, task: Task) -> None:
    result = run("bash", "-c", f"kubectl-reattach explain {task.name} | true; exit ${{PIPESTATUS[0]}}")
    assert (result.returncode, result.stderr) == (141, "")


def test_colours_are_for_terminals_and_no_color_turns_them_off(run: Run, viewer: CliUser, task: Task) -> None:
    program = (sys.executable, "-m", "reattach.cli", "explain", task.name, "--kubeconfig", str(viewer.kubeconfig))
    assert COLOUR in on_terminal(*program, TERM="xterm", NO_COLOR="")
    for environment in ({"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb", "NO_COLOR": ""}):
        shown = on_terminal(*program, **environment)
        assert f"{task.name} in namespace {task.namespace}" in shown
        assert COLOUR not in shown
    piped = run(*program, TERM="xterm", NO_COLOR="")
    assert (piped.returncode, COLOUR in piped.stdout) == (0, False)


@pytest.mark.parametrize(
    "words, offered",
    [
        (["re"], {"resolve", "release", "rerun", "resume"}),
        (["explain", ""], {"load"}),
        (["explain", "x"], set()),
        (["state", ""], {"get", "ls", "set", "rm", "export", "import"}),
        (["state", "get", "load", ""], {"job_id", "load/eu"}),
        (["state", "get", "load", "j"], {"job_id"}),
        (["resolve", "load", "--key", ""], {"load"}),
        (["wait", "load", "--for", ""], {"Succeeded", "outcome"}),
        (["--context", ""], {"tests"}),
        (["resolve", "load", "--res"], {"--resubmit"}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_kubectl_completes(run: Run, server: Server, task: Task, words: list[str], offered: set[str]) -> None:
    attempt = task.attempt(server)
    for key in ("job_id", "load/eu"):
        attempt.set(key, 1)
    attempt.client.post("/v1/jobs/load/intent", json={"submitter": "s", "adapter": "http", "digest": "d"})
    hold = {"generation": 1, "state": "Unknown", "hold": True}
    assert attempt.client.put("/v1/jobs/load/outcome", json=hold).status_code == 204
    result = run("kubectl", "__complete", "reattach", *words)
    lines = result.stdout.splitlines()
    assert {line.split("\t")[0] for line in lines if not line.startswith(":")} == offered, result.stderr
    assert lines[-1] == ":4"


def test_files_are_offered_where_a_file_is_wanted(run: Run, task: Task) -> None:
    assert run("kubectl", "__complete", "reattach", "state", "import", task.name, "").stdout.splitlines()[-1] == ":0"


def test_completion_is_silent_where_the_api_server_is_away(run: Run, viewer: CliUser, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.write_text(viewer.kubeconfig.read_text().replace(viewer.control_plane.url, "https://127.0.0.1:1"))
    result = run("kubectl_complete-reattach", "explain", "", KUBECONFIG=str(away))
    assert (result.returncode, result.stdout, result.stderr) == (0, ":4\n", "")


def test_bash_completes_the_program_by_its_own_script(run: Run, task: Task) -> None:
    script = """
        source <(kubectl-reattach completion bash)
        COMP_WORDS=(kubectl-reattach explain "") COMP_CWORD=2
        _kubectl_reattach_completion kubectl-reattach
        echo "${COMPREPLY[@]}"
    """
    result = run("bash", "-c", script)
    assert (result.stdout, result.stderr) == (f"{task.name}\n", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(run: Run, shell: str, tmp_path: Path) -> None:
    script = run("kubectl-reattach", "completion", shell).stdout
    assert "kubectl-reattach" in script
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(script)
        assert run(shell, "-n", str(file)).returncode == 0
