"""Commands of `kubectl reattach` in this process, against a cluster in memory."""

import contextlib
import io
import sys
from typing import Any
from unittest import mock

from reattach.cli import application, connection
from reattach.cli.connection import ClusterConnection
from reattach.cluster import Cluster


def run_command(cluster: Cluster, namespace: str, arguments: list[str], stdin: bytes = b"") -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""

    async def connect(_target: Any) -> ClusterConnection:
        return ClusterConnection(cluster, namespace)

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    with (
        mock.patch.object(connection, "connect", connect),
        mock.patch.object(sys, "stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = application.run(arguments)
    return int(code), out.buffer.getvalue().decode(), err.buffer.getvalue().decode()  # type: ignore[attr-defined]
