"""A request that failed before its first byte made no job; after that byte, it may have made one.

The servers and the proxy are real, on loopback. Each case checks both the error and the bytes that
arrived anywhere.
"""

import dataclasses
import errno
import functools
import itertools
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from controlplane import _Authority
from loopback import SECONDS, Loopback, in_tls, read_head, read_request, reset, serving, tunnel
from reattach.adapters.base import Adapter, Rejected, Submission
from reattach.adapters.http import Description, HttpJobs, States, StatusRequest, SubmitRequest
from reattach.adapters.http_client import BoundedHttpClient, CallError, NotSentError
from reattach.adapters.kubernetes import TASKRUN, Access, KubernetesObjects
from reattach.adapters.ray import RayJobs
from reattach.adapters.slurm import SlurmRest

MARK = "the-token-of-the-job"
"""Text of the request, which no peer may receive if the request was not sent."""
BODY = {"tag": MARK}
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"id": 1}'
PATIENT = 60.0
"""`seconds` of clients whose request fails at once."""
HURRIED = 1.2
"""`seconds` of clients that never get a connection. They wait a sixth of that for it."""

Serve = Callable[[socket.socket, Loopback], None]


@dataclass
class World:
    """Everything that a case may need, and the bytes that arrived."""

    stack: ExitStack
    monkeypatch: pytest.MonkeyPatch
    directory: Path
    servers: list[Loopback] = field(default_factory=list)

    def serve(self, script: Serve) -> Loopback:
        self.servers.append(self.stack.enter_context(serving(script)))
        return self.servers[-1]

    def raising(self, error: BaseException) -> Callable[..., Any]:
        def fail(*_args: object, **_named: object) -> Any:
            raise error

        return fail

    def with_proxy(self, address: str, **how: Any) -> BoundedHttpClient:
        """Return a client whose proxy was set after its construction, so that it is unchecked."""
        client = BoundedHttpClient("https://jobs.invalid", **{"seconds": PATIENT, **how})
        self.monkeypatch.setenv("HTTPS_PROXY", address)
        return client

    @functools.cached_property
    def authority(self) -> _Authority:
        return _Authority.new()

    def server_tls(self, authority: _Authority | None = None) -> ssl.SSLContext:
        certificate, key = (authority or self.authority).issue("jobs", server=True)
        (self.directory / "tls.pem").write_bytes(certificate + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "tls.pem")
        return context

    def trust(self) -> ssl.SSLContext:
        pem = self.authority.certificate.public_bytes(Encoding.PEM).decode()
        return ssl.create_default_context(cadata=pem)

    def arrived_until_the_end(self) -> bytes:
        """End all servers, because one may still record what the client has sent, and return the bytes."""
        self.stack.close()
        return b"".join(itertools.chain.from_iterable(server.received for server in self.servers))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with ExitStack() as stack:
        yield World(stack, monkeypatch, tmp_path)


Case = Callable[[World], Callable[[], object]]
"""Prepares a world, and returns the call that must fail."""


def posting(client: BoundedHttpClient, **how: Any) -> Callable[[], object]:
    return lambda: client.send("POST", "/jobs", BODY, **how)


def record(connection: socket.socket, loopback: Loopback) -> None:
    """Read a request, and record it."""
    loopback.received.append(read_request(connection))


def respond(connection: socket.socket, loopback: Loopback) -> None:
    record(connection, loopback)
    connection.sendall(OK)


# -- names, addresses, sockets ----


def to(address: str, **how: Any) -> Case:
    return lambda _world: posting(BoundedHttpClient(address, **{"seconds": PATIENT, **how}))


def resolver(error: OSError) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        world.monkeypatch.setattr(socket, "getaddrinfo", world.raising(error))
        return posting(BoundedHttpClient("http://jobs.example.com", PATIENT))

    return prepare


def connecting(number: int) -> Case:
    """Let the kernel refuse the connection with this error."""

    def prepare(world: World) -> Callable[[], object]:
        server = world.serve(respond)
        world.monkeypatch.setattr(socket.socket, "connect", world.raising(OSError(number, "as the kernel says")))
        return posting(BoundedHttpClient(server.address, PATIENT))

    return prepare


def refused(_world: World) -> Callable[[], object]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    return posting(BoundedHttpClient(address, PATIENT))


def backlog_full(world: World) -> Callable[[], object]:
    server = world.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):  # the server does not accept them, so the kernel drops the next one
        waiting = world.stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(server.getsockname())
    return posting(BoundedHttpClient(f"http://127.0.0.1:{server.getsockname()[1]}", HURRIED))


def no_descriptors(world: World) -> Callable[[], object]:
    server = world.serve(respond)
    client = BoundedHttpClient(server.address, PATIENT)
    world.monkeypatch.setattr(socket, "socket", world.raising(OSError(errno.EMFILE, "Too many open files")))
    return posting(client)


def transport(**how: Any) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        server = world.serve(respond)
        own = world.stack.enter_context(httpx.HTTPTransport(**how))
        return posting(BoundedHttpClient(server.address, HURRIED, transport=own))

    return prepare


def closed_meanwhile(close: Callable[[socket.socket], None]) -> Case:
    """Close the connection after it was made, and before anything is sent."""

    def prepare(world: World) -> Callable[[], object]:
        def script(connection: socket.socket, _loopback: Loopback) -> None:
            close(connection)

        server = world.serve(script)
        wait = lambda: server.closed.wait(SECONDS)  # noqa: E731 -- a hook of one line
        return posting(BoundedHttpClient(server.address, PATIENT), may_leave=wait)

    return prepare


# -- credentials and permission ----


def headers(read: Callable[[], Any]) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        return posting(BoundedHttpClient(world.serve(respond).address, PATIENT, read))

    return prepare


def value(text: Any, name: str = "Authorization") -> Case:
    return headers(lambda: {name: text})


def failing(error: BaseException) -> Case:
    def read() -> Mapping[str, str]:
        raise error

    return headers(read)


def identity_provider_hangs_up(world: World) -> Callable[[], object]:
    """Fail with the client's own error, for a request that did leave, but to another server."""

    def hang_up(connection: socket.socket, _loopback: Loopback) -> None:
        read_head(connection)

    provider = world.serve(hang_up)

    def read() -> Mapping[str, str]:
        BoundedHttpClient(provider.address, PATIENT).send("GET", "/token")
        raise AssertionError

    return headers(read)(world)


def not_permitted(may_leave: Callable[[], bool]) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        return posting(BoundedHttpClient(world.serve(respond).address, PATIENT), may_leave=may_leave)

    return prepare


def no_permission() -> bool:
    raise RuntimeError("the capabilities can't be read")


def late(world: World) -> Callable[[], object]:
    ticks = itertools.count(step=PATIENT / 2)
    return posting(BoundedHttpClient(world.serve(respond).address, PATIENT, clock=lambda: float(next(ticks))))


def slow_name_server(world: World) -> Callable[[], object]:
    real = socket.getaddrinfo

    def resolve(*args: Any, **named: Any) -> Any:
        time.sleep(HURRIED / 2)
        return real(*args, **named)

    world.monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return posting(BoundedHttpClient(world.serve(respond).address, HURRIED))


# -- TLS ----


def trusting(read: Callable[[], Any]) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        server = world.serve(in_tls(world.server_tls(), respond))
        return posting(BoundedHttpClient(server.tls_address, PATIENT, tls=read))

    return prepare


def unreadable_ca(content: str | None) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        file = world.directory / "ca.crt"
        if content is not None:
            file.write_text(content)
        return trusting(lambda: ssl.create_default_context(cafile=file))(world)

    return prepare


def system_ca(content: str) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        file = world.directory / "system.crt"
        file.write_text(content)
        world.monkeypatch.setenv("SSL_CERT_FILE", str(file))
        return posting(BoundedHttpClient(world.serve(respond).address, PATIENT))

    return prepare


def tls(change: Callable[[World, ssl.SSLContext, ssl.SSLContext], str | None]) -> Case:
    """Change the contexts of server and client. A returned host replaces the address's."""

    def prepare(world: World) -> Callable[[], object]:
        ours, theirs = world.trust(), world.server_tls()
        host = change(world, theirs, ours) or "127.0.0.1"
        server = world.serve(in_tls(theirs, respond))
        return posting(BoundedHttpClient(f"https://{host}:{server.port}", PATIENT, tls=lambda: ours))

    return prepare


def another_authority(world: World, theirs: ssl.SSLContext, _ours: ssl.SSLContext) -> None:
    world.server_tls(_Authority.new())
    theirs.load_cert_chain(world.directory / "tls.pem")


def another_name(_world: World, _theirs: ssl.SSLContext, _ours: ssl.SSLContext) -> str:
    return "127.0.0.2"


def another_version(_world: World, theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    theirs.maximum_version = ssl.TLSVersion.TLSv1_2
    ours.minimum_version = ssl.TLSVersion.TLSv1_3


def other_ciphers(_world: World, theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    theirs.maximum_version = ours.maximum_version = ssl.TLSVersion.TLSv1_2
    theirs.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    ours.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")


def unrevoked(_world: World, _theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    ours.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def no_client_certificate_1_2(world: World, theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.load_verify_locations(cadata=world.authority.certificate.public_bytes(Encoding.PEM).decode())
    ours.maximum_version = ssl.TLSVersion.TLSv1_2


def instead_of_tls(script: Serve, seconds: float = PATIENT) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        server = world.serve(script)
        return posting(BoundedHttpClient(server.tls_address, seconds, tls=world.trust))

    return prepare


def says(text: bytes) -> Serve:
    """Read what the client sends first, and send a text."""

    def script(connection: socket.socket, loopback: Loopback) -> None:
        loopback.received.append(connection.recv(65536))
        connection.sendall(text)

    return script


def reads_and_resets(connection: socket.socket, loopback: Loopback) -> None:
    loopback.received.append(connection.recv(65536))
    reset(connection)


def silent(connection: socket.socket, loopback: Loopback) -> None:
    while part := connection.recv(65536):
        loopback.received.append(part)


# -- proxies ----


def proxy_settings(**variables: str) -> Case:
    """Set the variables after the client was made, so that it can't refuse them at once."""

    def prepare(world: World) -> Callable[[], object]:
        client = BoundedHttpClient("https://jobs.invalid", PATIENT)
        for name, setting in variables.items():
            world.monkeypatch.setenv(name, setting)
        return posting(client)

    return prepare


def refused_settings(**variables: str) -> Case:
    """Set the variables before the client is made, which refuses them."""

    def prepare(world: World) -> Callable[[], object]:
        for name, setting in variables.items():
            world.monkeypatch.setenv(name, setting)
        return lambda: BoundedHttpClient("https://jobs.invalid", PATIENT)

    return prepare


def refused_address(address: str) -> Case:
    return lambda _world: lambda: BoundedHttpClient(address, PATIENT)


def via(script: Serve, seconds: float = PATIENT) -> Case:
    """Send a request to an https address through a proxy with this script."""
    return lambda world: posting(world.with_proxy(world.serve(script).address, seconds=seconds))


def connect_says(head: str) -> Serve:
    return says(head.replace("\n", "\r\n").encode())


def connected_then(script: Serve) -> Serve:
    """Accept a CONNECT, and play the script in place of a tunnel."""

    def proxy(connection: socket.socket, loopback: Loopback) -> None:
        loopback.received.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        script(connection, loopback)

    return proxy


def closes(_connection: socket.socket, _loopback: Loopback) -> None:
    pass


def real_tunnel(world: World, target: Loopback) -> Loopback:
    """Serve a proxy that forwards to the target, whatever the CONNECT names."""

    def proxy(connection: socket.socket, loopback: Loopback) -> None:
        loopback.received.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        tunnel(connection, ("127.0.0.1", target.port))

    return world.serve(proxy)


def tunnel_to_untrusted(world: World) -> Callable[[], object]:
    target = world.serve(in_tls(world.server_tls(_Authority.new()), respond))
    proxy = real_tunnel(world, target)
    client = BoundedHttpClient("https://127.0.0.1", PATIENT, tls=world.trust)
    world.monkeypatch.setenv("HTTPS_PROXY", proxy.address)
    return posting(client)


def tunnel_with_another_name(world: World) -> Callable[[], object]:
    target = world.serve(in_tls(world.server_tls(), respond))
    proxy = real_tunnel(world, target)
    return posting(world.with_proxy(proxy.address, tls=world.trust))


GARBAGE = b"\x00\x01\x02 this is no protocol \r\n\r\n"
SECRET = "s3cret"

BEFORE: dict[str, Case] = {
    # names
    "a name that does not exist": to("http://jobs.invalid"),
    "a name server that is down": resolver(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
    "a name server that fails for good": resolver(socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure")),
    "a label that is too long": to(f"http://{'a' * 64}.invalid"),
    "an empty label": to("http://jobs..invalid"),
    "a slow name server": slow_name_server,
    # sockets
    "a closed port": refused,
    "port 0": to("http://127.0.0.1:0"),
    "a closed port of IPv6": to("http://[::1]:9"),
    "an address that is not in use": to("http://127.255.255.254:9"),
    "a full backlog": backlog_full,
    "no file descriptors": no_descriptors,
    "no route to the host": connecting(errno.EHOSTUNREACH),
    "no network": connecting(errno.ENETUNREACH),
    "no free port of our own": connecting(errno.EADDRNOTAVAIL),
    "a local firewall": connecting(errno.EPERM),
    "a reset of the handshake": connecting(errno.ECONNRESET),
    "no response to SYN": connecting(errno.ETIMEDOUT),
    "a local address that is not ours": transport(local_address="203.0.113.1"),
    "no connection left in the pool": transport(limits=httpx.Limits(max_connections=0)),
    "a server that closes before the request": closed_meanwhile(lambda connection: connection.close()),
    "a server that resets before the request": closed_meanwhile(reset),
    # credentials and permission
    "credentials in a missing file": headers(lambda: {"Authorization": Path("/nonexistent/token").read_text()}),
    "an identity provider that is away": failing(RuntimeError("the identity provider is away")),
    "an identity provider that hangs up": identity_provider_hangs_up,
    "an identity provider that times out": failing(httpx.ReadTimeout("timed out")),
    "a hook with a missing module": failing(ModuleNotFoundError("No module named 'oauthlib'")),
    "a hook with a missing key": failing(KeyError("access_token")),
    "a hook with no headers": headers(lambda: None),
    "a hook with text": headers(lambda: "Authorization"),
    "a token with a newline": value(f"Bearer {SECRET}\n"),
    "a token with a second header": value(f"Bearer {SECRET}\r\nX-Admin: true"),
    "a token with a null byte": value(f"Bearer {SECRET}\0"),
    "a token that ends with a space": value(f"Bearer {SECRET} "),
    "no token": value(None),
    "a number as a token": value(7),
    "a lone surrogate in a token": value("\ud800"),
    "a header name with a space": value(SECRET, "X Token"),
    "an empty header name": value(SECRET, ""),
    "a header name outside of ASCII": value(SECRET, "X-Töken"),
    "a submission that is too old": not_permitted(lambda: False),
    "a permission that can't be read": not_permitted(no_permission),
    "a process that was frozen": late,
    # TLS
    "a CA file that does not exist": unreadable_ca(None),
    "a CA file that is no PEM": unreadable_ca("no PEM"),
    "a CA file that is empty": unreadable_ca(""),
    "a trust that can't be read": trusting(lambda: {}["ca"]),
    "a CA of the system that is no PEM": system_ca("no PEM"),
    "a certificate of another CA": tls(another_authority),
    "a certificate of another name": tls(another_name),
    "a certificate without the CRL that is required": tls(unrevoked),
    "no common version of TLS": tls(another_version),
    "no common cipher": tls(other_ciphers),
    "no client certificate, in TLS 1.2": tls(no_client_certificate_1_2),
    "plain HTTP on a port for TLS": instead_of_tls(says(OK)),
    "garbage in place of TLS": instead_of_tls(says(GARBAGE)),
    "a close during the TLS handshake": instead_of_tls(says(b"")),
    "a reset during the TLS handshake": instead_of_tls(reads_and_resets),
    "a TLS alert": instead_of_tls(says(b"\x15\x03\x03\x00\x02\x02\x28")),
    "silence during the TLS handshake": instead_of_tls(silent, HURRIED),
    # proxies
    "a proxy with an unknown scheme": proxy_settings(HTTPS_PROXY="htp://proxy.invalid:3128"),
    "a proxy with a port that is no number": proxy_settings(HTTPS_PROXY="http://proxy.invalid:port"),
    "a proxy with half an address": proxy_settings(HTTPS_PROXY="http://[::1"),
    "a proxy for all with an unknown scheme": proxy_settings(ALL_PROXY="gopher://proxy.invalid"),
    "a SOCKS proxy without its module": proxy_settings(ALL_PROXY="socks5://127.0.0.1:1080"),
    "a proxy name that does not exist": proxy_settings(HTTPS_PROXY="http://proxy.invalid:3128"),
    "a proxy that refuses connections": proxy_settings(HTTPS_PROXY="http://127.0.0.1:9"),
    "a proxy that closes": via(says(b"")),
    "a proxy that resets": via(reads_and_resets),
    "a proxy that is silent": via(silent, HURRIED),
    "a proxy that speaks no HTTP": via(says(GARBAGE)),
    "a proxy that cuts its response": via(connect_says("HTTP/1.1 200 Conn")),
    "a proxy that wants credentials": via(connect_says("HTTP/1.1 407 Proxy Authentication Required\n\n")),
    "a proxy that forbids the address": via(connect_says("HTTP/1.1 403 Forbidden\nContent-Length: 2\n\nno")),
    "a proxy that reaches nothing": via(connect_says("HTTP/1.1 502 Bad Gateway\n\n")),
    "a proxy that is overloaded": via(connect_says("HTTP/1.1 503 Service Unavailable\nRetry-After: 9\n\n")),
    "a proxy that gives up": via(connect_says("HTTP/1.1 504 Gateway Timeout\n\n")),
    "a proxy that is no proxy": via(connect_says("HTTP/1.1 405 Method Not Allowed\n\n")),
    "a proxy that redirects": via(connect_says("HTTP/1.1 302 Found\nLocation: /login\n\n")),
    "a proxy that closes its tunnel": via(connected_then(says(b""))),
    "a proxy that resets its tunnel": via(connected_then(reads_and_resets)),
    "a tunnel to plain HTTP": via(connected_then(says(OK))),
    "a tunnel to garbage": via(connected_then(says(GARBAGE))),
    "a tunnel to silence": via(connected_then(silent), HURRIED),
    "a tunnel to another CA": tunnel_to_untrusted,
    "a tunnel to another name": tunnel_with_another_name,
}
"""Ways in which a request fails before its first byte."""

REFUSED: dict[str, Case] = {
    "no scheme": refused_address("jobs.example.com"),
    "an unknown scheme": refused_address("htp://jobs.example.com"),
    "no host": refused_address("https://"),
    "half of an IPv6 address": refused_address("http://[::1"),
    "a port that is no number": refused_address("http://jobs.example.com:port"),
    "a proxy with an unknown scheme": refused_settings(HTTPS_PROXY="htp://proxy.invalid:3128"),
    "a proxy with a port that is no number": refused_settings(HTTP_PROXY="http://proxy.invalid:port"),
    "a SOCKS proxy without its module": refused_settings(ALL_PROXY="socks5://127.0.0.1:1080"),
}
"""Settings with which no request could ever leave."""


# -- after the first byte ----


def after(script: Serve, body: Any = None) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        client = BoundedHttpClient(world.serve(script).address, PATIENT, answer_bytes=1024 * 1024)
        return lambda: client.send("POST", "/jobs", BODY if body is None else body)

    return prepare


def impatient(case: Case) -> Case:
    """Wait long for a connection, and then half a second for each read and write."""

    def prepare(world: World) -> Callable[[], object]:
        timeout = httpx.Timeout(PATIENT / 6, read=0.5, write=0.5)
        world.monkeypatch.setattr(httpx, "Timeout", lambda *_args, **_named: timeout)
        return case(world)

    return prepare


def replies(*parts: bytes) -> Serve:
    def script(connection: socket.socket, loopback: Loopback) -> None:
        record(connection, loopback)
        for part in parts:
            connection.sendall(part)

    return script


def after_head(end: Callable[[socket.socket], None]) -> Serve:
    """End the connection after the headers, without reading the body."""

    def script(connection: socket.socket, loopback: Loopback) -> None:
        loopback.received.append(connection.recv(64))
        end(connection)

    return script


def then_resets(connection: socket.socket, loopback: Loopback) -> None:
    record(connection, loopback)
    reset(connection)


def then_silent(connection: socket.socket, loopback: Loopback) -> None:
    record(connection, loopback)
    connection.recv(1)


def reads_nothing(connection: socket.socket, loopback: Loopback) -> None:
    loopback.received.append(connection.recv(64))
    gone = select.poll()
    gone.register(connection, select.POLLRDHUP)
    gone.poll(SECONDS * 1000)


def trickling(world: World) -> Callable[[], object]:
    def trickle(connection: socket.socket, loopback: Loopback) -> None:
        record(connection, loopback)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.01)

    server = world.serve(trickle)
    return posting(BoundedHttpClient(server.address, PATIENT, clock=lambda: PATIENT * 2 if server.received else 0.0))


def over_tls(script: Callable[[ssl.SSLSocket, Loopback], None]) -> Case:
    def prepare(world: World) -> Callable[[], object]:
        server = world.serve(in_tls(world.server_tls(), script))
        return posting(BoundedHttpClient(server.tls_address, PATIENT, tls=world.trust))

    return prepare


def no_client_certificate_1_3(world: World) -> Callable[[], object]:
    """Let the client send its request before it learns that the server wants a certificate."""
    context = world.server_tls()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=world.authority.certificate.public_bytes(Encoding.PEM).decode())

    def script(connection: socket.socket, loopback: Loopback) -> None:
        try:
            in_tls(context, respond)(connection, loopback)
        finally:
            loopback.received.append(b"encrypted")

    return posting(BoundedHttpClient(world.serve(script).tls_address, PATIENT, tls=world.trust))


def tunnel_that_ends(end: Callable[[socket.socket], None]) -> Case:
    """End a real tunnel once the target has received the request, before its response."""

    def prepare(world: World) -> Callable[[], object]:
        arrived = threading.Event()

        def take(connection: ssl.SSLSocket, loopback: Loopback) -> None:
            record(connection, loopback)
            arrived.set()
            connection.recv(1)

        target = world.serve(in_tls(world.server_tls(), take))

        def script(connection: socket.socket, loopback: Loopback) -> None:
            loopback.received.append(read_head(connection))
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            tunnel(connection, ("127.0.0.1", target.port), arrived, end)

        proxy = world.serve(script)
        client = BoundedHttpClient("https://127.0.0.1", PATIENT, tls=world.trust)
        world.monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        return posting(client)

    return prepare


def forwarded(script: Serve) -> Case:
    """Send a request to a plain address, which the proxy receives whole."""

    def prepare(world: World) -> Callable[[], object]:
        client = BoundedHttpClient("http://jobs.invalid", PATIENT)
        world.monkeypatch.setenv("HTTP_PROXY", world.serve(script).address)
        return posting(client)

    return prepare


def own_transport(error: Exception) -> Case:
    """Use a transport that reports no steps."""

    def prepare(world: World) -> Callable[[], object]:
        server = world.serve(closes)
        server.received.append(b"unknown")
        mock = httpx.MockTransport(world.raising(error))
        return posting(BoundedHttpClient("http://jobs.invalid", PATIENT, transport=mock))

    return prepare


def from_socket_file(world: World) -> Callable[[], object]:
    path = str(world.directory / "jobs.sock")
    server = world.serve(closes)
    listener = world.stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen()

    def accept() -> None:
        connection, _ = listener.accept()
        with connection:
            record(connection, server)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    world.stack.callback(thread.join)
    own = world.stack.enter_context(httpx.HTTPTransport(uds=path))
    return posting(BoundedHttpClient("http://jobs.invalid", PATIENT, transport=own))


LARGE = {"tag": MARK, "script": "x" * 16 * 1024 * 1024}
"""Larger than all buffers of a connection."""

AFTER: dict[str, Case] = {
    "a close after the request": after(record),
    "a reset after the request": after(then_resets),
    "silence after the request": impatient(after(then_silent)),
    "a close after the headers": after(after_head(lambda connection: connection.close())),
    "a reset after the headers": after(after_head(reset)),
    "a close within the body": after(after_head(lambda connection: connection.close()), LARGE),
    "a reset within the body": after(after_head(reset), LARGE),
    "a body that the server does not read": impatient(after(reads_nothing, LARGE)),
    "100 Continue and a close": after(replies(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "103 Early Hints and a close": after(replies(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")),
    "half a status line": after(replies(b"HTTP/1.1 20")),
    "half the headers": after(replies(b"HTTP/1.1 200 OK\r\nContent-Le")),
    "a body that is cut": after(replies(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{")),
    "a chunk that is cut": after(replies(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{")),
    "a chunk that is no chunk": after(replies(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{")),
    "a body that is no gzip": after(
        replies(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")
    ),
    "a response that is no HTTP": after(replies(GARBAGE)),
    "headers without end": after(replies(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1024 * 1024)),
    "a header that is none": after(replies(b"HTTP/1.1 200 OK\r\n: x\r\n\r\n")),
    "a response that is too long": after(replies(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1024 * 1024 * 2)),
    "a response that trickles": trickling,
    "a close after the request in TLS": over_tls(record),
    "a reset after the request in TLS": over_tls(then_resets),
    "a body that is cut in TLS": over_tls(replies(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{")),
    "no client certificate, in TLS 1.3": no_client_certificate_1_3,
    "a tunnel that closes after the request": tunnel_that_ends(lambda c: c.shutdown(socket.SHUT_RDWR)),
    "a tunnel that is reset after the request": tunnel_that_ends(reset),
    "a proxy that closes after the request": forwarded(record),
    "a proxy that resets after the request": forwarded(then_resets),
    "a proxy that is silent after the request": impatient(forwarded(then_silent)),
    "a close of a socket file": from_socket_file,
    "a timeout of a transport without steps": own_transport(httpx.ReadTimeout("timed out")),
    "a broken transport without steps": own_transport(RuntimeError("who knows")),
}
"""Ways in which a request fails after its first byte."""


@pytest.mark.parametrize("case", BEFORE)
def test_request_that_fails_before_its_first_byte_was_not_sent(world: World, case: str) -> None:
    send = BEFORE[case](world)
    with pytest.raises(NotSentError) as caught:
        send()
    assert MARK.encode() not in world.arrived_until_the_end()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("case", AFTER)
def test_request_that_fails_after_its_first_byte_may_have_arrived(world: World, case: str) -> None:
    send = AFTER[case](world)
    with pytest.raises(CallError) as caught:
        send()
    assert not isinstance(caught.value, NotSentError)
    assert world.arrived_until_the_end()


@pytest.mark.parametrize("case", REFUSED)
def test_client_with_settings_that_prevent_every_request_is_refused(world: World, case: str) -> None:
    construct = REFUSED[case](world)
    with pytest.raises(ValueError, match=r"must be|need a package"):
        construct()


def test_numbers_of_cases_are_as_promised() -> None:
    assert len(BEFORE) >= 60
    assert len(AFTER) >= 20


def test_proxy_password_is_not_in_the_error(world: World) -> None:
    world.monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}/x@proxy.invalid")
    with pytest.raises(ValueError, match="must be URLs") as caught:
        BoundedHttpClient("https://jobs.invalid", PATIENT)
    assert SECRET not in str(caught.value)


def test_request_that_would_be_taken_for_a_tunnel_is_refused(world: World) -> None:
    client = BoundedHttpClient(world.serve(respond).address, PATIENT)
    with pytest.raises(ValueError, match="must not be CONNECT"):
        client.send("connect", "/jobs", BODY)


UNCHECKED = dataclasses.replace(TASKRUN, ends=())
"""A kind without a dry run before its creation."""


@pytest.mark.parametrize("case", ["an identity provider that is away", "a token with a newline"])
def test_submission_without_readable_credentials_waits_for_them(world: World, case: str) -> None:
    def read() -> Mapping[str, str]:
        if "newline" in case:
            return {"Authorization": "Bearer t\n"}
        raise RuntimeError(case)

    client = BoundedHttpClient(world.serve(respond).address, PATIENT, read)
    with pytest.raises(Rejected) as caught:
        client.submit(Submission("t-1", BODY, "load", 1, "team", "nightly"), "POST", "/jobs", BODY)
    assert caught.value.credentials


STATES = States(active=("R",), succeeded=("S",), failed=("F",))
ADAPTERS: dict[str, tuple[Callable[[str], Adapter], object]] = {
    "http": (
        lambda url: HttpJobs(
            Description(
                address=url,
                submit=SubmitRequest(path="/jobs", handle="id"),
                status=StatusRequest(path="/jobs/{handle}", state="state", states=STATES, not_found_says="no job"),
            )
        ),
        BODY,
    ),
    "kubernetes": (
        lambda url: KubernetesObjects(UNCHECKED, access=Access(server=url, namespace="team", ca=None, token="t")),
        {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "spec": {}},
    ),
    "ray": (lambda url: RayJobs(url, durable=True), {"entrypoint": "true"}),
    "slurmrestd": (
        lambda url: SlurmRest(url, user="u", token=lambda: "t", version="v0.0.38", accounting=None),
        {"script": "#!/bin/sh\ntrue", "job": {}},
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_reports_a_submission_without_a_first_byte_as_rejected_for_now(world: World, name: str) -> None:
    build, request = ADAPTERS[name]
    jobs = build(world.serve(closes).address)
    permitted = world.servers[0].closed
    submission = Submission("t-1", request, "load", 1, "team", "nightly", may_leave=lambda: permitted.wait(SECONDS))
    with pytest.raises(Rejected, match=r"not sent: .* closed the connection before") as caught:
        jobs.submit(submission)
    assert caught.value.retriable


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_reports_a_submission_with_a_first_byte_as_unknown(world: World, name: str) -> None:
    build, request = ADAPTERS[name]
    jobs = build(world.serve(record).address)
    with pytest.raises(Exception, match="did not respond") as caught:
        jobs.submit(Submission("t-1", request, "load", 1, "team", "nightly"))
    assert not isinstance(caught.value, Rejected)
    assert world.arrived_until_the_end()
