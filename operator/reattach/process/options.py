"""Flags and options of the operator."""

import argparse
import json
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from reattach.installation import InstallationOptions
from reattach.logs import FORMATS
from reattach.pki.certificates import CertificateSettings
from reattach.runtime.leader_election import LeaseSettings
from reattach.uninstall import ReleaseOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of `run`.

    No `watch_namespaces` means all. Either `certificates` or `ca_file` is set.
    """

    kubeconfig: str | None
    instance: str
    watch_namespaces: tuple[str, ...]
    state_api_url: str
    state_api_service: str
    certificates: CertificateSettings | None
    ca_file: Path | None
    lease: LeaseSettings
    host: str
    metrics_port: int
    serve_metrics: bool
    workers: int
    writes_per_second: float
    writes_at_once: int
    sweep_seconds: float
    paused: bool
    read_nodes: bool
    deleted_nodes_are_dead: bool


def add_run_arguments(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add the flags of `run`."""
    add = parser.add_argument
    add("--state-api-url", required=True, help="https URL by which task pods call the state API")
    add(
        "--state-api-service", default="", help="Service in --namespace whose address pods use if they can't resolve it"
    )
    add("--lease-name", default="reattach-operator", help="name of the Lease, in --namespace")
    add("--lease-seconds", type=int, default=15, help="how long another replica waits before it replaces a lost one")
    add(
        "--lease-deadline-seconds",
        type=float,
        help="how long a leader runs without a renewal of the Lease (default: 2/3 of --lease-seconds)",
    )
    add("--lease-renew-seconds", type=float, help="pause between two renewals (default: 2/15 of --lease-seconds)")
    add("--identity", default=environment.get("POD_UID"), help="holder of the Lease: the pod's UID (default: $POD_UID)")
    add("--metrics-host", default="", help="address to serve /healthz and /readyz on (default: all)")
    add("--metrics-port", type=int, default=8080, help="port of the same; 0: any")
    add(
        "--serve-metrics",
        action="store_true",
        help="serve /metrics on --metrics-port, to every client that can reach it",
    )
    add("--workers", type=int, default=32, help="number of TaskRuns that are reconciled at once")
    add("--writes-per-second", type=float, default=1000.0, help="maximum of writes to the API server, on average")
    add("--writes-at-once", type=int, default=32, help="maximum of concurrent writes")
    add(
        "--sweep-seconds",
        type=float,
        default=300.0,
        help="interval of the resync, which lists all TaskRuns, and of the sweeps, which remove expired keys and delete ended TaskRuns by their ttl",
    )
    add("--paused", action="store_true", help="start no attempts; running ones continue, and their ends are recorded")
    add(
        "--read-nodes",
        action="store_true",
        help="read the Node of a pod whose end is not reported: a taint out-of-service is evidence that the pod ended",
    )
    add(
        "--deleted-nodes-are-dead",
        action="store_true",
        help="with --read-nodes: a deleted Node is evidence that its pods have ended, too",
    )
    tls = parser.add_argument_group("certificates of the state API")
    tls.add_argument("--ca-file", type=Path, help="give this bundle to pods, and create no certificates")
    tls.add_argument("--ca-secret", default="reattach-ca", help="Secret of the CA, in --namespace")
    tls.add_argument("--tls-secret", default="reattach-tls", help="Secret of the serving certificate, in --namespace")
    tls.add_argument("--dns-names", default="", help="names of the state API, separated by commas")
    tls.add_argument("--cert-manager", action="store_true", help="cert-manager writes --tls-secret")
    tls.add_argument(
        "--ca-overlap-seconds",
        type=float,
        default=CertificateSettings.overlap.total_seconds(),
        help="time between the distribution of a new CA to the pods and its use (default: %(default)g)",
    )
    tls.add_argument(
        "--certificate-check-seconds",
        type=float,
        default=CertificateSettings.check_every.total_seconds(),
        help="interval between two checks of the certificates and of the pods' CA (default: %(default)g)",
    )


def add_common_arguments(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add the flags of every command."""
    add = parser.add_argument
    add("--kubeconfig", help="default: the pod's service account; outside of a cluster $KUBECONFIG, ~/.kube/config")
    add(
        "--namespace",
        default=environment.get("POD_NAMESPACE", "reattach"),
        help="namespace of the operator (default: $POD_NAMESPACE)",
    )
    add("--watch-namespaces", default="", help="namespaces to serve, separated by commas (default: all)")
    add("--log-format", choices=FORMATS, default="plain")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def run_options_of(arguments: argparse.Namespace) -> RunOptions:
    """Return the options of `run`.

    Raises `ValueError`, whose message names the rule that is broken.
    """
    if not arguments.state_api_url.startswith("https://"):
        raise ValueError("--state-api-url must be an https URL: pods send their token there")
    if (
        arguments.workers < 1
        or arguments.writes_at_once < 1
        or arguments.writes_per_second <= 0
        or arguments.sweep_seconds <= 0
    ):
        raise ValueError("--workers, --writes-at-once, --writes-per-second and --sweep-seconds must be above 0")
    seconds = arguments.lease_seconds
    instance = os.environ.get("POD_NAME") or socket.gethostname()
    return RunOptions(
        kubeconfig=arguments.kubeconfig,
        instance=instance,
        watch_namespaces=namespaces_of(arguments),
        state_api_url=arguments.state_api_url,
        state_api_service=arguments.state_api_service,
        certificates=_certificates_of(arguments),
        ca_file=arguments.ca_file,
        lease=LeaseSettings(
            namespace=arguments.namespace,
            name=arguments.lease_name,
            holder=arguments.identity or f"{instance}-{uuid.uuid4()}",
            seconds=seconds,
            deadline_seconds=arguments.lease_deadline_seconds or seconds * 2 / 3,
            every_seconds=arguments.lease_renew_seconds or seconds * 2 / 15,
        ),
        host=arguments.metrics_host,
        metrics_port=arguments.metrics_port,
        serve_metrics=arguments.serve_metrics,
        workers=arguments.workers,
        writes_per_second=arguments.writes_per_second,
        writes_at_once=arguments.writes_at_once,
        sweep_seconds=arguments.sweep_seconds,
        paused=arguments.paused,
        read_nodes=arguments.read_nodes,
        deleted_nodes_are_dead=arguments.deleted_nodes_are_dead,
    )


def add_release_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `release`."""
    add = parser.add_argument
    add("--deployments", default="", help="Deployments in --namespace to delete first, separated by commas")
    add("--pod-selector", default="", help="label selector of their pods; `release` waits until these pods are gone")
    add("--secrets", default="", help="Secrets in --namespace to delete at the end, separated by commas")
    add("--leases", default="", help="Leases in --namespace to delete at the end, separated by commas")
    add("--timeout-seconds", type=float, default=120, help="how long the pods may take to end (default: %(default)s)")


def release_options_of(arguments: argparse.Namespace) -> ReleaseOptions:
    """Return the options of `release`."""
    return ReleaseOptions(
        namespace=arguments.namespace,
        watch_namespaces=namespaces_of(arguments),
        deployments=listed(arguments.deployments),
        pod_selector=arguments.pod_selector,
        secrets=listed(arguments.secrets),
        leases=listed(arguments.leases),
        timeout_seconds=arguments.timeout_seconds,
    )


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `test`."""
    add = parser.add_argument
    add("--taskrun", required=True, help="the TaskRun to run, as JSON")
    add("--taskrun-namespace", required=True, help="namespace of the TaskRun, which the operator must serve")
    add("--policy", required=True, help="ValidatingAdmissionPolicy that refuses pods which pose as attempts")
    add("--operator", required=True, help="Deployment of the operator in --namespace")
    add("--server", required=True, help="Deployment of the state API in --namespace")
    add("--timeout-seconds", type=float, default=120, help="how long the TaskRun may take (default: %(default)s)")


def installation_options_of(arguments: argparse.Namespace) -> InstallationOptions:
    """Return the options of `test`. Raises `ValueError` if the TaskRun is not JSON."""
    return InstallationOptions(
        namespace=arguments.taskrun_namespace,
        release_namespace=arguments.namespace,
        taskrun=json.loads(arguments.taskrun),
        policy=arguments.policy,
        operator=arguments.operator,
        server=arguments.server,
        timeout_seconds=arguments.timeout_seconds,
    )


def namespaces_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the namespaces to serve; none means all."""
    return listed(arguments.watch_namespaces)


def _certificates_of(arguments: argparse.Namespace) -> CertificateSettings | None:
    if arguments.ca_file:
        return None
    if arguments.ca_overlap_seconds <= 0 or arguments.certificate_check_seconds <= 0:
        raise ValueError("--ca-overlap-seconds and --certificate-check-seconds must be above 0")
    return CertificateSettings(
        namespace=arguments.namespace,
        ca_secret=arguments.ca_secret,
        tls_secret=arguments.tls_secret,
        dns_names=listed(arguments.dns_names)
        or (arguments.state_api_url.removeprefix("https://").partition(":")[0].partition("/")[0],),
        watch_namespaces=namespaces_of(arguments),
        cert_manager=arguments.cert_manager,
        overlap=timedelta(seconds=arguments.ca_overlap_seconds),
        check_every=timedelta(seconds=arguments.certificate_check_seconds),
    )


def listed(text: str) -> tuple[str, ...]:
    """Return the parts of a list that is separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
