"""Routes to the state API: by name, and by address for pods that can't resolve the name."""

import dataclasses
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fakepod import Pod
from reattach.pki.ca import new_authority, new_serving
from reattach.task.connection import StateApiConnection, StateApiRequest, UnreachableError, routes_of
from reattach.task.settings import TaskSettings

NAME = "reattach-server.reattach.svc"
READ = StateApiRequest("GET", "/v1/state/color")


class TlsServer:
    """A server on loopback, whose certificate has only a name."""

    def __init__(self, directory: Path, name: str) -> None:
        now, day = datetime.now(UTC), timedelta(days=1)
        authority = new_authority(now, day)
        serving = new_serving(authority, (name,), now, day)
        self.ca = authority.certificate.public_bytes(Encoding.PEM).decode()
        pair = directory / "tls.pem"
        pair.write_bytes(serving.certificate.public_bytes(Encoding.PEM) + serving.key_pem())
        self.hosts: list[str | None] = []
        hosts = self.hosts

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hosts.append(self.headers["Host"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Resolve no name, and return those that were looked up. Addresses need no resolver."""
    looked_up: list[str] = []
    resolve = socket.getaddrinfo

    def refuse(host: Any, *arguments: Any, **more: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else str(host)
        if text.startswith("127."):
            return resolve(host, *arguments, **more)
        looked_up.append(text)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return looked_up


def server_of(directory: Path, name: str = NAME) -> Iterator[TlsServer]:
    server = TlsServer(directory, name)
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    yield from server_of(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[TlsServer]:
    """Start a server of another installation, which has the address now."""
    yield from server_of(tmp_path, "other.reattach.svc")


def settings_of(pod: Pod, server: TlsServer, address: str = "127.0.0.1") -> TaskSettings:
    pod.settings.ca_file.write_text(server.ca)
    return dataclasses.replace(pod.settings, url=f"https://{NAME}:{server.port}", address=address)


def test_pod_that_can_not_resolve_the_name_connects_by_address(pod: Pod, server: TlsServer, names: list[str]) -> None:
    connection = StateApiConnection(settings_of(pod, server), "session-1")
    assert [connection.send(READ).status_code for _ in range(3)] == [204, 204, 204]
    assert server.hosts == [f"{NAME}:{server.port}"] * 3
    assert names == [NAME]
    connection.close()


async def test_async_calls_connect_by_address_too(pod: Pod, server: TlsServer, names: list[str]) -> None:
    connection = StateApiConnection(settings_of(pod, server), "session-1")
    assert [(await connection.asend(READ)).status_code for _ in range(3)] == [204, 204, 204]
    assert names == [NAME]
    await connection.aclose()


@pytest.mark.usefixtures("names")
def test_server_without_the_name_in_its_certificate_gets_no_request(pod: Pod, other: TlsServer) -> None:
    connection = StateApiConnection(settings_of(pod, other), "session-1")
    with pytest.raises(UnreachableError, match="Name or service not known"):
        connection.send(READ)
    assert other.hosts == []
    connection.close()


@pytest.mark.usefixtures("names")
def test_pod_without_an_address_knows_only_the_name(pod: Pod, server: TlsServer) -> None:
    connection = StateApiConnection(settings_of(pod, server, address=""), "session-1")
    with pytest.raises(UnreachableError, match="Name or service not known"):
        connection.send(READ)
    connection.close()


def test_route_by_address_keeps_name_port_and_path(pod: Pod) -> None:
    settings = dataclasses.replace(pod.settings, url="https://api.example:8443/reattach", address="fd00::1")
    by_name, by_address = routes_of(settings)
    assert by_name.url == settings.url
    assert by_address.url == "https://[fd00::1]:8443/reattach"
    assert by_address.headers == {"Host": "api.example:8443"}
    assert by_address.extensions == {"sni_hostname": "api.example"}
