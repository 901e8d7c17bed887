"""Alerts fire when they should, and neither they nor the dashboard ask for a metric that no server counts."""

import json
import re
import subprocess

import pytest
import yaml
from installed import installed
from program import metrics, query_faults
from rendering import DEPLOY, render

DASHBOARD = json.loads((DEPLOY / "dashboards" / "tvkd.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture
def promtool(tmp_path):
    def run(*words, **files):
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        program = installed("promtool", "Debian's prometheus")
        return subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True)

    return run


def alerts():
    return next(one for one in render("overlays/gpu-vllm") if one["kind"] == "PrometheusRule")["spec"]


def test_the_dashboard_asks_for_metrics_that_are_there_in_promql(promtool):
    assert [fault for query in QUERIES for fault in query_faults(query)] == []
    rules = [
        {"record": f"panel:{index}", "expr": query.replace("$__rate_interval", "5m")}
        for index, query in enumerate(QUERIES)
    ]
    done = promtool("check", "rules", "panels.yaml", panels={"groups": [{"name": "panels", "rules": rules}]})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_shows_every_metric():
    shown = {name for query in QUERIES for name in re.findall(r"tvkd_\w+", query)}
    assert {name for name in metrics() if not name.endswith(("_sum", "_count"))} <= shown


def test_the_docs_list_every_metric_and_no_other():
    page = (DEPLOY.parent / "docs" / "watching.md").read_text()
    listed = re.findall(r"^\| `(tvkd_\w+)(?:\{\w+\})?` \|", page, re.MULTILINE)
    ends = r"_(bucket|sum|count)$"
    assert sorted(listed) == sorted({re.sub(ends, "", name) for name in metrics()})


def test_the_docs_describe_every_alert():
    page = (DEPLOY.parent / "docs" / "watching.md").read_text()
    assert set(re.findall(r"^\| `(Tvkd\w+)` \|", page, re.MULTILINE)) == FIRES.keys()


def test_alerts_are_rules_of_prometheus(promtool):
    done = promtool("check", "rules", "alerts.yaml", alerts=alerts())
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_is_no_promql_is_found(promtool):
    wrong = alerts()["groups"][0] | {"rules": [{"alert": "X", "expr": "sum(tvkd_queued_tokens"}]}
    assert promtool("check", "rules", "alerts.yaml", alerts={"groups": [wrong]}).returncode != 0


def test_prometheus_of_compose_is_configured(promtool):
    done = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


SERIES = 'job="tvkd", instance="a"'
FIRES = {
    # alert: what a server counts, a value each minute for an hour
    "TvkdDown": {'up{job="tvkd"}': "0x60"},
    "TvkdFailing": {
        f'tvkd_requests_total{{{SERIES}, outcome="store-unavailable"}}': "0+10x60",
        f'tvkd_requests_total{{{SERIES}, outcome="ok"}}': "0+100x60",
    },
    "TvkdStuck": {f"tvkd_queued_tokens{{{SERIES}}}": "5000x60", f"tvkd_teacher_tokens_total{{{SERIES}}}": "900x60"},
    "TvkdOverloaded": {f'tvkd_requests_total{{{SERIES}, outcome="overloaded"}}': "0+6x60"},
    "TvkdStoreSlow": {
        f'tvkd_store_seconds_bucket{{{SERIES}, operation="put", le="3.0"}}': "0+9x60",
        f'tvkd_store_seconds_bucket{{{SERIES}, operation="put", le="10.0"}}': "0+10x60",
        f'tvkd_store_seconds_bucket{{{SERIES}, operation="put", le="+Inf"}}': "0+10x60",
    },
    "TvkdQueueSlow": {
        f'tvkd_queue_seconds_bucket{{{SERIES}, work="on-demand", le="10.0"}}': "0+9x60",
        f'tvkd_queue_seconds_bucket{{{SERIES}, work="on-demand", le="30.0"}}': "0+10x60",
        f'tvkd_queue_seconds_bucket{{{SERIES}, work="on-demand", le="+Inf"}}': "0+10x60",
    },
    "TvkdStoreDamaged": {f"tvkd_corrupt_blocks{{{SERIES}}}": "1x60"},
    "TvkdVolumeFilling": {
        'kubelet_volume_stats_available_bytes{persistentvolumeclaim="data-tvkd-0"}': "5x60",
        'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="data-tvkd-0"}': "100x60",
    },
}
HEALTHY = {
    'up{job="tvkd"}': "1x60",
    f'tvkd_requests_total{{{SERIES}, outcome="ok"}}': "0+100x60",
    f'tvkd_requests_total{{{SERIES}, outcome="overloaded"}}': "0x60",
    f'tvkd_requests_total{{{SERIES}, outcome="invalid-request"}}': "0+50x60",
    f"tvkd_queued_tokens{{{SERIES}}}": "5000x60",
    f"tvkd_teacher_tokens_total{{{SERIES}}}": "0+90000x60",
    f"tvkd_corrupt_blocks{{{SERIES}}}": "0x60",
    # Bulk waits, which is what it is for.
    f'tvkd_queue_seconds_bucket{{{SERIES}, work="bulk", le="30.0"}}': "0x60",
    f'tvkd_queue_seconds_bucket{{{SERIES}, work="bulk", le="+Inf"}}': "0+10x60",
}


def firing(promtool, series):
    """Alerts that fire after an hour of the series."""
    groups, wanted = alerts(), []
    for rule in groups["groups"][0]["rules"]:
        wanted.append({"eval_time": "59m", "alertname": rule["alert"], "exp_alerts": []})
    test = {"interval": "1m", "input_series": [{"series": name, "values": values} for name, values in series.items()]}
    done = promtool(
        "test", "rules", "test.yaml",
        alerts=groups, test={"rule_files": ["alerts.yaml"], "tests": [test | {"alert_rule_test": wanted}]},
    )  # fmt: skip
    return set(re.findall(r"alertname: ?(\w+)", done.stdout + done.stderr))


def test_every_alert_has_a_case():
    assert {rule["alert"] for rule in alerts()["groups"][0]["rules"]} == FIRES.keys()


@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_fires(promtool, alert):
    assert alert in firing(promtool, FIRES[alert])


def test_no_alert_fires_at_a_healthy_server_with_clients_that_err(promtool):
    assert firing(promtool, HEALTHY) == set()
