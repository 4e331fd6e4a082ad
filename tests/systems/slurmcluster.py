"""A Slurm cluster of our own in one container, whose daemons can be frozen, stopped and robbed of their memory."""

import os
import secrets
import subprocess
from pathlib import Path

from waiting import wait_until

FILES = Path(__file__).parent / "slurm"
START_SECONDS = 120
REST_VERSION = "v0.0.38"


class SlurmCluster:
    """slurmctld, slurmd, slurmdbd and slurmrestd, one CPU and 1 GiB at most, `MinJobAge=5`. Jobs are submitted by the user `task`."""

    def __init__(self, image: str, docker_host: str) -> None:
        self._image = image
        self._name = f"reattach-slurm-{secrets.token_hex(4)}"
        self._env = {**os.environ, **({"DOCKER_HOST": docker_host} if docker_host else {})}
        os.environ.update(self._env)  # for the adapter, which runs `docker exec` too
        self._token = ""
        self.address = ""

    @property
    def via(self) -> tuple[str, ...]:
        """What runs a command as the user in the container."""
        return ("docker", "exec", "--interactive", "--user", "task", "--workdir", "/home/task", self._name)

    def start(self) -> None:
        self._docker(
            "create", "--name", self._name, "--hostname", "slurm", "--memory", "1g", "--cpus", "1", "--init",
            "--publish", "127.0.0.1::6820", self._image, "/start",
        )  # fmt: skip
        for file in ("slurm.conf", "slurmdbd.conf"):
            self._docker("cp", str(FILES / file), f"{self._name}:/etc/slurm/{file}")
        self._docker("cp", str(FILES / "start"), f"{self._name}:/start")
        self._docker("start", self._name)
        wait_until(self._is_ready, seconds=START_SECONDS, what="Slurm starts", every=0.2)
        self._token = (
            self.root("scontrol", "token", "username=task", "lifespan=7200").strip().removeprefix("SLURM_JWT=")
        )
        self.address = f"http://{self._docker('port', self._name, '6820/tcp').splitlines()[0]}"

    def remove(self) -> None:
        self._docker("rm", "--force", self._name)

    def token(self) -> str:
        """A JSON Web Token of the user."""
        return self._token

    def root(self, *command: str) -> str:
        """What a command prints, run by root in the container."""
        return self._docker("exec", self._name, *command)

    def signal(self, daemon: str, signal: str) -> None:
        """`slurmctld` or `slurmdbd`."""
        self.root("pkill", f"-{signal}", "--exact", daemon)

    def stop(self, daemon: str) -> None:
        self.signal(daemon, "TERM")
        wait_until(lambda: not self._runs(daemon), seconds=30, what=f"{daemon} ends")

    def start_again(self, daemon: str) -> None:
        self.root(daemon)
        check = {"slurmctld": "scontrol ping | grep -q UP", "slurmdbd": "sacctmgr --noheader show cluster"}[daemon]
        wait_until(lambda: self._succeeds("sh", "-c", check), seconds=60, what=f"{daemon} answers", every=0.2)

    def lose_state(self) -> None:
        """The controller's memory, as where its disk is lost: jobs are forgotten, and ids begin anew."""
        self.root("sh", "-c", "rm -rf /var/lib/slurm/slurmctld/*")

    def _runs(self, daemon: str) -> bool:
        return self._succeeds("pgrep", "--exact", daemon)

    def _is_ready(self) -> bool:
        state = self._docker("inspect", "--format={{.State.Status}}", self._name).strip()
        if state != "running":
            raise AssertionError(f"the container is {state}:\n{self._docker('logs', self._name)[-3000:]}")
        return self._succeeds("test", "-e", "/run/ready")

    def _succeeds(self, *command: str) -> bool:
        return self._run("exec", self._name, *command).returncode == 0

    def _docker(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.returncode:
            raise AssertionError(f"docker {' '.join(arguments)} failed: {done.stdout}{done.stderr}")
        return done.stdout + (done.stderr if arguments[0] == "logs" else "")

    def _run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._env,
            timeout=120,
            check=False,
        )
