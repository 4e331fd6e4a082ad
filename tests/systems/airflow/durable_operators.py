"""The conformance suite with operators of Airflow's provider packages.

`tests/systems/test_airflow.py` runs this file in an environment that contains Airflow.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx
import pytest

import reattach.airflow
from conformance.brokenapi import OperationsOf, broken_api
from reattach.adapters.base import Cancelled, NotFound
from reattach.testing import CASES, ENDING_CASES, Case, ExternalSystem, Fault
from systems.airflow.services import Service, served
from systems.conformance import ALL, SAMPLE, Stage, play, staged

SAMPLE_HERE = {*SAMPLE, "run cancelled", "cut, made", "forgotten"}
CASES_HERE = [case for case in (*CASES, *ENDING_CASES) if ALL or case.name in SAMPLE_HERE]
LASTING = 3600

Fail: TypeAlias = Callable[[Fault | None], None]


@contextlib.contextmanager
def breakable(port: int, operations_of: OperationsOf) -> Iterator[tuple[int, Fail]]:
    """Yield the port of a proxy in front of a service, and what makes its calls fail."""
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
        broken_api(client, operations_of) as (address, broken),
    ):
        proxied = urlsplit(address).port
        assert proxied is not None
        yield proxied, broken.fail


def operations_by(submit: str, status: str) -> OperationsOf:
    """Return the operations of a service: patterns of the calls that submit and report a job."""

    def operations_of(method: str, path: str) -> tuple[str, ...]:
        call = f"{method} {path}"
        return ("submit",) if re.search(submit, call) else ("status",) if re.search(status, call) else ()

    return operations_of


def connect(name: str, **parts: Any) -> None:
    os.environ[f"AIRFLOW_CONN_{name}_DEFAULT"] = json.dumps(parts)


def databricks(service: Service, port: int, fail: Fail) -> ExternalSystem:
    from airflow.providers.databricks.operators.databricks import DatabricksSubmitRunOperator

    connect("DATABRICKS", conn_type="databricks", schema="http", host="127.0.0.1", port=port, password="token")

    def request(seconds: int) -> Any:
        task = {"notebook_path": "/load", "base_parameters": {"seconds": str(seconds)}}
        return {"json": {"existing_cluster_id": "c", "notebook_task": task}}

    return ExternalSystem(
        adapter=lambda: reattach.airflow.operator(DatabricksSubmitRunOperator(task_id="load"), request_seconds=6.0),
        count_jobs=service.count,
        count_running=service.count_running,
        fail=fail,
        forget=service.forget,
        request=request(2),
        other_request=request(3),
        lasting_request=request(LASTING),
    )


def livy(service: Service, port: int, fail: Fail) -> ExternalSystem:
    from airflow.providers.apache.livy.operators.livy import LivyOperator

    connect("LIVY", conn_type="livy", schema="http", host="127.0.0.1", port=port)

    def request(seconds: int) -> Any:
        return {"spark_params": {"file": "s3://jobs/load.py", "args": [str(seconds)]}}

    return ExternalSystem(
        adapter=lambda: reattach.airflow.operator(
            LivyOperator(task_id="load", file="s3://jobs/load.py"), request_seconds=6.0
        ),
        count_jobs=service.count,
        count_running=service.count_running,
        fail=fail,
        forget=service.forget,
        request=request(2),
        other_request=request(3),
        lasting_request=request(LASTING),
    )


class RedshiftClock:
    """Ends the statements of moto, which run for ever there, after the time that they name."""

    def __init__(self) -> None:
        from moto.redshiftdata.models import redshiftdata_backends

        self.statements = redshiftdata_backends["123456789012"]["us-east-1"].statements
        self._started: dict[str, float] = {}
        self._forgotten = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def count(self) -> int:
        return len(self.statements) + self._forgotten

    def forget(self, handle: str) -> None:
        """Drop a statement, as Redshift does after 24 hours."""
        if self.statements.pop(handle, None) is not None:
            self._forgotten += 1

    def count_running(self) -> int:
        return sum(one.status == "STARTED" for one in list(self.statements.values()))

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for key, one in list(self.statements.items()):
                began = self._started.setdefault(key, time.monotonic())
                seconds = re.search(r"\d+", one.query_string)
                assert seconds is not None
                if one.status == "STARTED" and time.monotonic() - began >= float(seconds[0]):
                    one.status = "FINISHED"


def redshift(clock: RedshiftClock, port: int, fail: Fail) -> ExternalSystem:
    from airflow.providers.amazon.aws.operators.redshift_data import RedshiftDataOperator

    extra = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    connect("AWS", conn_type="aws", login="key", password="secret", extra=extra)

    def request(seconds: int) -> Any:
        return {"sql": f"CALL sleep({seconds})"}

    return ExternalSystem(
        adapter=lambda: reattach.airflow.operator(
            RedshiftDataOperator(task_id="load", sql="CALL sleep(2)", database="dev", cluster_identifier="c"),
            request_seconds=6.0,
        ),
        count_jobs=clock.count,
        count_running=clock.count_running,
        fail=fail,
        forget=clock.forget,
        request=request(2),
        other_request=request(3),
        lasting_request=request(LASTING),
    )


@pytest.fixture(scope="module")
def databricks_stage() -> Iterator[Stage]:
    service = Service()
    operations = operations_by(submit="runs/submit$", status="runs/get$")
    with served(service, service.databricks) as port, breakable(port, operations) as (proxied, fail):
        yield from staged("airflow, DatabricksSubmitRunOperator", databricks(service, proxied, fail))


@pytest.fixture(scope="module")
def livy_stage() -> Iterator[Stage]:
    service = Service()
    operations = operations_by(submit="^POST /batches$", status="^GET /batches/")
    with served(service, service.livy) as port, breakable(port, operations) as (proxied, fail):
        yield from staged("airflow, LivyOperator", livy(service, proxied, fail))


@pytest.fixture(scope="module")
def redshift_stage() -> Iterator[Stage]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    clock = RedshiftClock()
    clock.start()
    operations = operations_by(submit="ExecuteStatement$", status="DescribeStatement$")
    try:
        with breakable(server.get_host_and_port()[1], operations) as (proxied, fail):
            yield from staged("airflow, RedshiftDataOperator", redshift(clock, proxied, fail))
    finally:
        clock.stop()
        server.stop()


@pytest.mark.parametrize("case", CASES_HERE, ids=str)
@pytest.mark.parametrize("name", ["databricks", "livy", "redshift"])
def test_operator_submits_once(request: pytest.FixtureRequest, name: str, case: Case) -> None:
    play(request.getfixturevalue(f"{name}_stage"), case)


@pytest.mark.parametrize("name", ["databricks", "livy", "redshift"])
def test_job_that_is_cancelled_is_reported_as_such(request: pytest.FixtureRequest, name: str) -> None:
    suite, _ = request.getfixturevalue(f"{name}_stage")
    from reattach.adapters.base import Submission

    adapter = suite.system.adapter()
    handle = adapter.submit(Submission("t", suite.system.lasting_request, "load", 1, "default", "nightly")).handle
    adapter.cancel(handle)
    assert isinstance(suite.system.adapter().status(handle), Cancelled | NotFound)
    adapter.cancel(handle)
