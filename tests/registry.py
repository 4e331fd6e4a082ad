"""A registry for images and charts on the network of the local cluster.

It serves HTTPS with a CA of its own. The nodes know that CA, and reach the registry under the
address that the host uses, as kind documents it for local registries.
"""

import json
import secrets
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from controlplane import CACHE
from reattach.pki.ca import new_authority, new_serving, pem_of
from waiting import wait_until

PROGRAM = CACHE / "docker-registry/usr/bin/docker-registry"
"""Program that hack/registry provides."""
CONFIGURATION = {
    "version": "0.1",
    "storage": {"filesystem": {"rootdirectory": "/tmp/registry"}},
    "http": {"addr": ":5000", "tls": {"certificate": "/settings/tls.crt", "key": "/settings/tls.key"}},
}
HOSTS = "/etc/containerd/certs.d"
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Registry:
    """A registry that docker, helm and the nodes reach under the same address."""

    address: str
    authority: Path
    """PEM file of its CA."""

    def tags(self, repository: str) -> list[str]:
        """Return the tags of an image or a chart; none if it was not pushed."""
        try:
            found: list[str] = json.loads(self._get(f"{repository}/tags/list"))["tags"]
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        return found

    def is_ready(self) -> bool:
        """Return whether the registry responds."""
        try:
            self._get("")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> bytes:
        context = ssl.create_default_context(cafile=self.authority)
        with urllib.request.urlopen(f"https://{self.address}/v2/{path}", context=context, timeout=10) as response:
            body: bytes = response.read()
        return body


@contextmanager
def running(folder: Path, base: str, nodes: tuple[str, ...]) -> Iterator[Registry]:
    """Run an empty registry on the network `kind`, and let the nodes trust it.

    Args:
        folder: An empty folder for its settings.
        base: Image with the C library in which the program runs.
        nodes: Containers of the nodes. They forget the registry and its images in the end.
    """
    name = f"reattach-registry-{secrets.token_hex(3)}"
    now = datetime.now(UTC)
    authority = new_authority(now, DAY)
    serving = new_serving(authority, ("localhost", name), now, DAY)
    (folder / "ca.crt").write_bytes(pem_of(authority.certificate))
    (folder / "tls.crt").write_bytes(pem_of(serving.certificate))
    (folder / "tls.key").write_bytes(serving.key_pem())
    (folder / "config.json").write_text(json.dumps(CONFIGURATION))  # JSON is YAML
    volumes = (f"--volume={PROGRAM}:/registry:ro", f"--volume={folder}:/settings:ro")
    options = ("--detach", "--rm", "--network=kind", f"--name={name}", "--publish=127.0.0.1::5000", *volumes)
    docker("run", *options, base, "/registry", "serve", "/settings/config.json")
    try:
        port = docker("port", name, "5000/tcp").split()[0].rpartition(":")[2]
        registry = Registry(f"localhost:{port}", folder / "ca.crt")
        wait_until(registry.is_ready, seconds=30, what="the registry responds", every=0.2)
        for node in nodes:
            _introduce(registry, node, name)
        try:
            yield registry
        finally:
            for node in nodes:
                _forget(registry, node)
            _remove_images(registry)
    finally:
        docker("rm", "--force", name)


def _remove_images(registry: Registry) -> None:
    """Remove the images of the registry from the Docker engine of this machine."""
    form = "--format={{.Repository}}:{{.Tag}}"
    if names := docker("image", "list", form, f"{registry.address}/*").split():
        docker("image", "rm", *names)


def docker(*command: str, stdin: str = "") -> str:
    """Return the output of a docker command."""
    done = subprocess.run(("docker", *command), input=stdin, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"docker {' '.join(command)}: {done.stderr}"
    return done.stdout


def _introduce(registry: Registry, node: str, name: str) -> None:
    _read_hosts(node)
    folder = f"{HOSTS}/{registry.address}"
    hosts = f'[host."https://{name}:5000"]\nca = "{folder}/ca.crt"\n'
    docker("exec", node, "mkdir", "-p", folder)
    docker("exec", "--interactive", node, "cp", "/dev/stdin", f"{folder}/ca.crt", stdin=registry.authority.read_text())
    docker("exec", "--interactive", node, "cp", "/dev/stdin", f"{folder}/hosts.toml", stdin=hosts)


def _read_hosts(node: str) -> None:
    """Let containerd read the folder HOSTS, as in the official node image.

    Its default is a list of two folders, which containerd 2.3 takes for the name of one when it
    pulls an image.
    """
    setting = f"config_path = '{HOSTS}'"
    if setting in docker("exec", node, "containerd", "config", "dump"):
        return
    table = f"\n[plugins.'io.containerd.cri.v1.images'.registry]\n{setting}\n"
    docker("exec", "--interactive", node, "sh", "-c", "cat >>/etc/containerd/config.toml", stdin=table)
    docker("exec", node, "systemctl", "restart", "containerd")


def _forget(registry: Registry, node: str) -> None:
    docker("exec", node, "rm", "-r", f"{HOSTS}/{registry.address}")
    images = docker("exec", node, "ctr", "--namespace=k8s.io", "images", "list", "--quiet").split()
    if pulled := [image for image in images if image.startswith(f"{registry.address}/")]:
        docker("exec", node, "ctr", "--namespace=k8s.io", "images", "remove", *pulled)
