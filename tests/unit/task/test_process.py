"""How the process of a task ends, seen from outside: exit code, standard error, and the time that it takes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[2]

PROGRAM = """
import asyncio, logging, os, signal, sys, threading, time
from pathlib import Path
from fakepod import CA, Pod, a_problem
import reattach
from reattach.task import termination
from reattach.task.context import TaskContext
from reattach.errors import *

termination.END_SECONDS = 0.3
pod = Pod(Path(sys.argv[1]))

def context():
    return TaskContext(pod.settings, transport=pod.api.transport(), timing=pod.time.timing())

def ready():
    print("ready", flush=True)
"""


def start(tmp_path: Path, program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()  # nothing to do where the claim holds
        return process.returncode, stderr


@pytest.mark.parametrize("way", ["context().run(main)", "with context() as task: main(task)"])
@pytest.mark.parametrize(
    "statement,code,stderr",
    [
        ("return 1", 0, ""),
        ("raise ValueError('no such table')", 1, "Traceback"),
        ("raise reattach.PermanentFailure('wrong query')", 1, "wrong query"),
        ("raise reattach.RetryLater(5)", 1, "RetryLater"),
        ("raise reattach.NotReady(5)", 1, "NotReady"),
        ("sys.exit(4)", 4, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        (
            "pod.api.down = a_problem(409, 'fenced', 'attempt 3 took over'); task.state.get('a')",
            79,
            "attempt 3 took over",
        ),
        ("pod.api.down = a_problem(409, 'closing'); task.state.get('a')", 80, "Closing"),
        ("pod.api.down = a_problem(409, 'state-lost'); task.state.get('a')", 81, "StateLost"),
        ("pod.api.down = a_problem(403, 'not-a-task-pod'); task.state.get('a')", 82, "Refused"),
        ("pod.api.down = a_problem(503, 'unavailable'); task.state.get('a')", 83, "has been unavailable"),
    ],
)
def test_each_end_has_its_exit_code(tmp_path: Path, way: str, statement: str, code: Any, stderr: str) -> None:
    seen = ended(start(tmp_path, f"def main(task):\n    {statement}\n{way}\n"))
    assert seen[0] == code
    assert stderr in seen[1]
    if code not in {1, -signal.SIGINT}:
        assert "Traceback" not in seen[1]


HANGS = """
from fakesystem import REQUEST, System
def hang():
    ready()
    threading.Event().wait(60)
system = System(before_cancel=[hang])
try:
    with pod.context() as task:
        task.submit_once("load", system, REQUEST)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
pod.termination_log.write_bytes(b"")
pod.begin_cleanup()
"""


@pytest.mark.parametrize(
    "program",
    [
        "pod.begin_cleanup(); pod.context(on_cleanup=lambda _: (ready(), time.sleep(60))).run(print)",
        HANGS + "pod.context(adapters=[system]).run(print)",
        HANGS
        + """
async def main():
    async with pod.context(adapters=[system]):
        pass
asyncio.run(main())
""",
    ],
    ids=["in the handler", "an adapter hangs", "an adapter hangs, async"],
)
def test_sigterm_ends_a_cleanup_at_once_with_143(tmp_path: Path, program: str) -> None:
    process = start(tmp_path, program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, stderr = ended(process)
    assert code == 143, stderr
    assert time.monotonic() - begin < 5
    assert "The next cleanup attempt continues" in stderr


@pytest.mark.parametrize(
    "program",
    [
        """
        def main(task):
            ready()
            time.sleep(60)
        context().run(main)
        """,
        """
        async def main(task):
            ready()
            await asyncio.sleep(60)
        context().run(main)
        """,
        """
        async def main():
            async with context():
                ready()
                await asyncio.sleep(60)
        asyncio.run(main())
        """,
        """
        with context():
            ready()
            threading.Event().wait(60)
        """,
    ],
    ids=["plain", "async", "async with", "waiting for a lock"],
)
def test_sigterm_ends_a_task_at_once_with_143(tmp_path: Path, program: str) -> None:
    process = start(tmp_path, program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, stderr = ended(process)
    assert code == 143, stderr
    assert time.monotonic() - begin < 5
    assert "Terminated: SIGTERM" in (tmp_path / "termination-log").read_text()


@pytest.mark.parametrize(
    "program",
    [
        """
        def main(task):
            pod.api.down = a_problem(409, "fenced")
            while True:
                try:
                    task.state.get("a")
                except:
                    time.sleep(0.01)
        context().run(main)
        """,
        """
        def main(task):
            pod.api.down = a_problem(409, "fenced")
            threading.Thread(target=task.state.get, args=["a"]).start()
            time.sleep(60)
        context().run(main)
        """,
    ],
    ids=["catches everything, always", "learns it in another thread"],
)
def test_a_fenced_process_ends_whatever_its_code_does(tmp_path: Path, program: str) -> None:
    code, stderr = ended(start(tmp_path, program))
    assert code == 79, stderr
    assert '"Fenced"' in (tmp_path / "termination-log").read_text()


def test_terminating_a_child_of_the_task_is_not_the_end_of_the_task(tmp_path: Path) -> None:
    program = """
    import multiprocessing

    def main(task):
        fork = multiprocessing.get_context("fork")
        up = fork.Event()
        child = fork.Process(target=lambda: (up.set(), time.sleep(20)))
        child.start()
        up.wait()  # until then Python itself may lose a signal
        child.terminate()
        child.join()
        return child.exitcode

    assert context().run(main) == -15
    assert not pod.termination_log.read_bytes()
    """
    assert ended(start(tmp_path, program)) == (0, "")


@pytest.mark.parametrize("call", ["task.state.get('a')", "asyncio.run(task.state.aget('a'))"], ids=["plain", "async"])
def test_connection_forked_while_a_thread_makes_a_client_sends_from_the_child(tmp_path: Path, call: str) -> None:
    program = f"""
    from reattach.task import connection

    make_tls = connection._tls
    making, forked = threading.Event(), threading.Event()

    def make_tls_slowly(ca):
        making.set()
        forked.wait(20)
        return make_tls(ca)

    def main(task):
        pod.settings.ca_file.write_text(CA + chr(10))  # another CA needs another client
        connection._tls = make_tls_slowly
        thread = threading.Thread(target=task.state.get, args=["a"])
        thread.start()
        making.wait(20)
        child = os.fork()
        if child == 0:
            connection._tls = make_tls
            signal.alarm(5)
            {call}
            os._exit(0)
        _, status = os.waitpid(child, 0)
        forked.set()
        thread.join()
        return os.waitstatus_to_exitcode(status)

    assert context().run(main) == 0
    """
    assert ended(start(tmp_path, program)) == (0, "")


def test_external_job_forked_while_a_thread_asks_for_its_status_asks_from_the_child(tmp_path: Path) -> None:
    program = """
    from fakesystem import REQUEST, System
    from reattach.adapter import Active

    asking, forked = threading.Event(), threading.Event()
    system = System()

    def slow_status(handle):
        asking.set()
        forked.wait(20)
        return Active()

    def main(task):
        job = task.submit_once("load", system, REQUEST, detached=True)
        system.status = slow_status
        thread = threading.Thread(target=job.status)
        thread.start()
        asking.wait(20)
        child = os.fork()
        if child == 0:
            system.status = lambda handle: Active()
            signal.alarm(5)
            job.status()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        forked.set()
        thread.join()
        return os.waitstatus_to_exitcode(status)

    logging.disable()
    assert context().run(main) == 0
    """
    assert ended(start(tmp_path, program)) == (0, "")


def test_the_sdk_needs_httpx_and_msgspec_alone(tmp_path: Path) -> None:
    program = """
    theirs = {"aiohttp", "kopf", "kubernetes", "cryptography", "prometheus_client", "uvloop", "yaml"}
    sys.exit(f"imported: {theirs & set(sys.modules)}" if theirs & set(sys.modules) else 0)
    """
    assert ended(start(tmp_path, program)) == (0, "")


SILENT = """
import dataclasses, socket
from reattach.task import end_report
from reattach.task.connection import StateApiConnection

end_report.REPORT_SECONDS = 0.5
silent = socket.create_server(("127.0.0.1", 0))
context = context()

def main(task):
    settings = dataclasses.replace(pod.settings, url=f"https://127.0.0.1:{silent.getsockname()[1]}")
    context._client = dataclasses.replace(context._client, connection=StateApiConnection(settings, "s"))
    raise reattach.PermanentFailure("no table")

context.run(main)
"""


def test_process_ends_although_the_state_api_accepts_its_connection_and_is_silent(tmp_path: Path) -> None:
    code, stderr = ended(start(tmp_path, SILENT))
    assert code == 1
    assert "no response within 0.5 s" in stderr
    assert '"Permanent"' in (tmp_path / "termination-log").read_text()
