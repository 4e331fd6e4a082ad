"""Alerts of the chart, as promtool and Prometheus evaluate them."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import CACHE, REPOSITORY, ControlPlaneError, helm_template

PROMTOOL = CACHE / "prometheus/usr/bin/promtool"
RULE = "prometheusrule.yaml"
QUIET = "0x30 "
"""Thirty-one minutes without an event."""
HEALTHY = {"reattach_leader": "1x120", "reattach_server_connections": "0x120"}
"""Series that prevent the alerts about absent processes."""

CASES: dict[str, tuple[dict[str, str], int, int]] = {
    # Series with their values at each minute; a minute at which the alert fires; a later one at
    # which it does not.
    "ReattachNoLeader": ({"reattach_leader": "0x10 1x60"}, 5, 20),
    "ReattachQueueSlow": ({"reattach_queue_oldest_seconds": "90x15 3x60"}, 12, 20),
    "ReattachWatchStale": ({'reattach_watch_age_seconds{watch="pods"}': "200x5 3x60"}, 3, 10),
    "ReattachReconcileErrors": ({"reattach_reconcile_errors_total": "0+2x30 60x60"}, 20, 60),
    "ReattachLoopRestarted": ({'reattach_restarted_loops_total{loop="sweep"}': "_x20 1x60"}, 25, 60),
    "ReattachObjectsUnreadable": ({'reattach_unreadable_objects_total{resource="pods"}': "_x20 1x60"}, 25, 60),
    "ReattachTtlFailures": ({"reattach_ttl_failures_total": "0+1x30 30x60"}, 25, 70),
    "ReattachRunsHeld": ({'reattach_held_taskruns{reason="SubmissionUnknown"}': "1x10 0x60"}, 7, 20),
    "ReattachJobsOrphaned": ({'reattach_orphaned_jobs_total{reason="Cancelled"}': "_x20 2x60"}, 25, 60),
    "ReattachOrphanRecordsNotStored": ({"reattach_unstored_orphan_records_total": QUIET + "1x60"}, 40, 80),
    "ReattachStateAPIDown": ({"reattach_server_connections": "_x10 0x60"}, 5, 20),
    "ReattachStateAPIErrors": (
        {
            'reattach_server_requests_total{status="200"}': "0+90x90",
            'reattach_server_requests_total{status="503"}': "0+10x30 300x60",
        },
        25,
        60,
    ),
    "ReattachStateAPISlow": (
        {
            'reattach_server_request_seconds_bucket{le="1.0"}': "0+90x30 2700+100x60",
            'reattach_server_request_seconds_bucket{le="5.0"}': "0+100x30 3000+100x60",
            'reattach_server_request_seconds_bucket{le="+Inf"}': "0+100x30 3000+100x60",
        },
        25,
        60,
    ),
    "ReattachTokenReviewErrors": ({'reattach_server_token_reviews_total{result="error"}': "0+1x30 30x60"}, 25, 60),
    "ReattachConnectionsRefused": (
        {'reattach_server_refused_connections_total{reason="total"}': "0+1x30 30x60"},
        25,
        60,
    ),
    "ReattachClockDifference": ({"reattach_server_clock_difference_seconds": "-3x10 0.2x60"}, 7, 20),
    # Promtool's clock begins in 1970.
    "ReattachCertificateExpires": (
        {"reattach_server_certificate_expiry_timestamp_seconds": "400000x20 2592000x60"},
        15,
        30,
    ),
}


def alerts(**values: Any) -> dict[str, dict[str, Any]]:
    rendered = helm_template(RULE, values={"metrics": {"prometheusRule": {"enabled": True, **values}}})
    [group] = yaml.safe_load(rendered)["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def of_this_installation(series: str) -> str:
    name, _, labels = series.removesuffix("}").partition("{")
    return f'{name}{{namespace="reattach",pod="a"{"," + labels if labels else ""}}}'


def firing_at(minute: int, name: str, count: int) -> dict[str, Any]:
    return {
        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{}", "value": count}] if count else [],
    }


def promtool(*arguments: str) -> None:
    process = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def write_rules(directory: Path) -> Path:
    path = directory / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "reattach", "rules": list(alerts().values())}]}))
    return path


def test_each_alert_fires_and_resolves(tmp_path: Path) -> None:
    """Another installation without any fault must not hide a fault of this one."""
    rules = write_rules(tmp_path)
    promtool("check", "rules", str(rules))
    tests = []
    for name, (series, firing, resolved) in CASES.items():
        healthy = {found: values for found, values in HEALTHY.items() if found not in series}
        inputs = [
            {"series": of_this_installation(found), "values": text} for found, text in {**healthy, **series}.items()
        ]
        inputs += [{"series": f'{found}{{namespace="other"}}', "values": text} for found, text in HEALTHY.items()]
        expected = [firing_at(firing, name, 1), firing_at(resolved, name, 0)]
        others = f'count(ALERTS{{alertname!="{name}", alertstate="firing"}})'
        expected += [{"expr": others, "eval_time": f"{firing}m", "exp_samples": []}]
        tests.append({"interval": "1m", "name": name, "input_series": inputs, "promql_expr_test": expected})
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path))
    assert CASES.keys() == alerts().keys()


def test_alerts_use_only_documented_metrics() -> None:
    documented = set(re.findall(r"`(reattach_\w+)`", (REPOSITORY / "docs/install.md").read_text()))
    for name, rule in alerts().items():
        used = re.findall(r"reattach_\w+", rule["expr"])
        assert used, name
        assert {found.removesuffix("_bucket") for found in used} <= documented, name


def test_each_alert_has_a_runbook_with_all_parts_in_the_order_of_the_rules() -> None:
    page = (REPOSITORY / "docs/runbooks.md").read_text()
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    assert [section.splitlines()[0] for section in sections] == list(alerts())
    for section in sections:
        parts = re.findall(r"^\*\*(\w+)\.\*\*", section, flags=re.MULTILINE)
        assert parts == ["Meaning", "Impact", "Diagnosis", "Mitigation"], section
    for name, rule in alerts(runbookURL="https://docs.example/runbooks").items():
        assert rule["annotations"]["runbook_url"] == f"https://docs.example/runbooks#{name.lower()}"


def test_alerts_change_by_their_values() -> None:
    changed = alerts(
        selector='cluster="a"',
        alerts={"ReattachNoLeader": {"for": "0s", "severity": "page"}, "ReattachRunsHeld": {"enabled": False}},
    )
    assert CASES.keys() - changed.keys() == {"ReattachRunsHeld"}
    assert changed["ReattachNoLeader"]["for"] == "0s"
    assert changed["ReattachNoLeader"]["labels"] == {"severity": "page"}
    assert all('{cluster="a"' in rule["expr"] and "SELECTOR" not in rule["expr"] for rule in changed.values())
    with pytest.raises(ControlPlaneError, match=r"alerts\.ReattachLeader: no such alert"):
        alerts(alerts={"ReattachLeader": {"enabled": False}})


def test_short_certificates_of_cert_manager_raise_no_alert_before_their_renewal() -> None:
    values = {
        "certificates": {"certManager": {"enabled": True, "durationHours": 24}},
        "metrics": {"prometheusRule": {"enabled": True}},
    }
    assert "time() < 14400" in helm_template(RULE, values=values)
    assert "time() < 432000" in alerts()["ReattachCertificateExpires"]["expr"]
