"""A Ray head of our own: started, frozen, killed. `ray stop` would end every Ray on the machine."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import httpx

from waiting import wait_until

MARK = "REATTACH_TEST_RAY"
START_SECONDS = 180
STARTS_MAX = 3
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "150",
    "RAY_gcs_server_port_wait_time_s": "150",
}


class RayHead:
    """The head of a cluster of one node: 1 CPU, 100 MB of objects, the dashboard on loopback, a token for every request.

    Ray binds its other ports to the machine's address, whatever it is told; the token keeps others out there too.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        # Ray puts sockets there, whose paths must be short.
        self._folder = Path("/tmp") / f"reattach-ray-{secrets.token_hex(4)}"
        self._log = folder / "ray.log"
        self._mark = uuid.uuid4().hex
        self._token = secrets.token_hex(32)
        self._dashboard, self._gcs, self._client, self._agent = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._dashboard}"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def start(self) -> float:
        """Seconds until it took jobs. Ray allows its own processes 30 s to start, which a busy machine may not keep: then once more."""
        began = time.monotonic()
        for _ in range(STARTS_MAX):
            self._begin()
            wait_until(
                lambda: self._has_ended() or self._takes_jobs(),
                seconds=START_SECONDS,
                what=f"Ray starts; its log is {self._log}",
                every=0.2,
            )
            if not self._has_ended():
                return time.monotonic() - began
            self.kill()
        raise AssertionError(f"Ray does not start:\n{self._log.read_text()[-3000:]}")

    def _begin(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._program, "start", "--head", "--block", "--disable-usage-stats",
                    "--node-ip-address=127.0.0.1", f"--port={self._gcs}", f"--ray-client-server-port={self._client}",
                    "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard}",
                    f"--dashboard-agent-listen-port={self._agent}", "--include-log-monitor=false", f"--temp-dir={self._folder}",
                    "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **PATIENCE, MARK: self._mark, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token},
            )  # fmt: skip

    def kill(self) -> None:
        """As a machine that fails: nothing is said, nothing is written."""
        self._signal(signal.SIGKILL)
        wait_until(lambda: not self._pids(), seconds=30, what="all of Ray is gone")
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.kill()
        subprocess.run(["rm", "-rf", self._folder], check=True)

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _takes_jobs(self) -> bool:
        # The dashboard answers before the agent that starts jobs is there.
        job = {"entrypoint": "true", "submission_id": f"warm-up-{time.monotonic_ns()}"}
        try:
            answer = httpx.post(
                f"{self.address}/api/jobs/", json=job, headers=self.headers(), timeout=30, trust_env=False
            )
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def _signal(self, number: int) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """Every process of this head and its jobs: they have inherited the mark."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes() and (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
