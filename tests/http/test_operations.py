"""The runbook, the alarms and the dashboard, held against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from deltas import zoo_path
from tests.http.server_process import url_of

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "operations.md"
MONITORING = ROOT / "docs" / "guide" / "monitoring"
FROM_PROMETHEUS = {"up": {"job", "instance"}}  # what the scraper itself adds
ADDED = {"job", "instance"}  # labels that it puts on each series


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return list(board["panels"])


def expressions() -> dict[str, str]:
    """Return each expression of alarms and dashboard, with the dashboard's variables filled in."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def selectors(node: Any) -> Iterator[Any]:
    """Yield each selector of series in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif not isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral):
        yield from selectors(node.expr)  # an aggregation, parentheses, a sign or a subquery


@pytest.fixture(scope="module")
def series(make_app: Callable[..., Any]) -> dict[str, dict[str, set[str]]]:
    """Every name of a series, with its labels and their values, after traffic with evictions."""
    found: dict[str, dict[str, set[str]]] = {name: {} for name in FROM_PROMETHEUS}
    with TestClient(make_app(max_slots=2), raise_server_exceptions=False) as client:
        for task in ("toy2", "toymulti", "toy2", "nope"):
            client.post(f"/predict/{task}", json={"inputs": "a film"})
        client.get("/health/ready")
        for family in text_string_to_metric_families(client.get("/metrics").text):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


@pytest.mark.parametrize("name", list(expressions()))
def test_expressions_name_series_and_labels_that_exist(
    name: str, series: dict[str, dict[str, set[str]]]
) -> None:
    tree = promql_parser.parse(expressions()[name])
    used = list(selectors(tree))
    assert used
    for selector in used:
        assert selector.name in series, f"no series is called {selector.name}"
        labels = series[selector.name]
        for matcher in selector.matchers.matchers:
            if matcher.name in ADDED:
                continue
            assert matcher.name in labels, f"{selector.name} has no label {matcher.name}"
            wanted = re.compile(matcher.value)
            assert any(map(wanted.fullmatch, labels[matcher.name])), (
                f"no {matcher.name} of {selector.name} is {matcher.value}"
            )


def test_labels_that_expressions_sum_by_exist(series: dict[str, dict[str, set[str]]]) -> None:
    known = ADDED | {"le"} | {label for labels in series.values() for label in labels}
    for name, text in expressions().items():
        for listed in re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", text):
            assert set(re.findall(r"\w+", listed)) <= known, name


def test_a_planted_name_is_found(series: dict[str, dict[str, set[str]]]) -> None:
    (wrong,) = selectors(promql_parser.parse("sum(rate(deltabert_row_total[5m])) > 1"))
    assert wrong.name not in series
    (right,) = selectors(promql_parser.parse("sum(rate(deltabert_rows_total[5m])) > 1"))
    assert right.name in series


def test_every_alarm_has_a_section_and_every_section_an_alarm() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    sections = re.findall(r"^### (Deltabert\w+)$", text, re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (GUIDE.name, rule["alert"].lower()) == (page, anchor)
        assert rule["labels"]["severity"] in ("page", "ticket")
        section = text.split(f"### {rule['alert']}\n")[1].split("\n### ")[0]
        assert "*Meaning:*" in section
        assert "*Do:*" in section


def test_panels_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_configuration_names_the_rules_that_lie_beside_it() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    assert [MONITORING / name for name in config["rule_files"]] == [MONITORING / "alerts.yaml"]
    (job,) = config["scrape_configs"]
    text = " ".join(expressions().values())
    assert set(re.findall(r'job="(\w+)"', text)) == {job["job_name"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_promtool_accepts_configuration_and_rules() -> None:
    for words in (["config", "prometheus.yaml"], ["rules", "alerts.yaml"]):
        command = ["promtool", "check", *words]
        done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# Series of half an hour with a sample every 15 s, in promtool's notation, of a server that is well.
WELL = {
    "up": "1x120",
    "deltabert_ready": "1x120",
    "deltabert_failing_seconds": "0x120",
    "process_start_time_seconds": "1000x120",
    'deltabert_requests_total{method="POST"}': "0+150x120",
    'deltabert_errors_total{code="internal_error"}': "0x120",
    'deltabert_errors_total{code="overloaded"}': "0+1x120",
    'deltabert_errors_total{code="deadline_exceeded"}': "0+1x120",
    'deltabert_errors_total{code="too_many_connections"}': "0x120",
    "deltabert_queue_oldest_seconds": "1.5x120",
    "deltabert_rejected_files": "0x120",
    'deltabert_stale_files{file="keys"}': "0x120",
    "deltabert_deltas": "36x120",
    'deltabert_delta_loads_total{outcome="failed"}': "0x120",
    'deltabert_slot_lookups_total{outcome="hit"}': "0+100x120",
    'deltabert_slot_lookups_total{outcome="waited"}': "0+10x120",
    "deltabert_slot_evictions_total": "0+100x120",
    "process_resident_memory_bytes": "500000000x120",
    "process_open_fds": "50x120",
    "process_max_fds": "1024x120",
}
ILL = {
    "DeltabertDown": {"up": "1x100 0x20"},
    "DeltabertNotReady": {"deltabert_ready": "1x100 0x20"},
    "DeltabertRestarts": {"process_start_time_seconds": "1x30 2x30 3x30 4x30"},
    "DeltabertErrors": {'deltabert_errors_total{code="internal_error"}': "0+15x120"},
    "DeltabertOverloaded": {'deltabert_errors_total{code="overloaded"}': "0+15x120"},
    "DeltabertQueueOld": {"deltabert_queue_oldest_seconds": "6x120"},
    "DeltabertDeadlines": {'deltabert_errors_total{code="deadline_exceeded"}': "0+15x120"},
    "DeltabertFilesRefused": {"deltabert_rejected_files": "2x120"},
    "DeltabertFileStale": {'deltabert_stale_files{file="keys"}': "0x100 1x20"},
    "DeltabertDeltasLost": {"deltabert_deltas": "36x60 10x60"},
    "DeltabertLoadsFail": {'deltabert_delta_loads_total{outcome="failed"}': "0+1x120"},
    "DeltabertEvictions": {'deltabert_slot_lookups_total{outcome="hit"}': "0+5x120"},
    "DeltabertMemory": {"process_resident_memory_bytes": "3000000000x120"},
    "DeltabertConnections": {"process_open_fds": "900x120"},
}


def series_test(changes: dict[str, str], firing: list[str]) -> dict[str, Any]:
    """Return one of promtool's tests: these alarms alone fire after half an hour."""
    return {
        "interval": "15s",
        "input_series": [
            {"series": name.replace("{", '{job="deltabert",instance="a",', 1), "values": values}
            if "{" in name
            else {"series": f'{name}{{job="deltabert",instance="a"}}', "values": values}
            for name, values in (WELL | changes).items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "30m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing
                ],
            }
        ],
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_each_alarm_fires_for_its_reason_and_no_other(tmp_path: Path) -> None:
    assert ILL.keys() == {rule["alert"] for rule in alerts()}
    tests = [series_test({}, []), *(series_test(given, [name]) for name, given in ILL.items())]
    document = {"rule_files": [str(MONITORING / "alerts.yaml")], "tests": tests}
    document["evaluation_interval"] = "15s"
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    command = ["promtool", "test", "rules", str(tmp_path / "tests.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def commands() -> list[str]:
    """Return the runbook's shell blocks."""
    text = GUIDE.read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_every_command_of_the_runbook_works(run_server: Callable[..., Any], tmp_path: Path) -> None:
    """The server has two tasks of the zoo and a damaged file; the commands check the sound ones."""
    zoo = next(zoo_path().glob("*/sst2")).parent
    for folder in ("served", "checked"):
        for task in ("sst2", "rte"):
            shutil.copytree(zoo / task, tmp_path / folder / zoo.name / task)
    (tmp_path / "served" / "bad.safetensors").write_bytes(b"no delta")
    first, *blocks = commands()
    assert re.findall(r"^(\w+)=", first, re.MULTILINE) == ["SERVER", "DELTAS"]
    assert len(blocks) >= 5
    outputs = []
    given = {"DELTABERT_BACKBONE": "", "DELTABERT_DELTAS": str(tmp_path / "served")}
    with run_server(**given) as server:
        environment = os.environ | {
            "SERVER": url_of(server),
            "DELTAS": str(tmp_path / "checked"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "no_proxy": "127.0.0.1",
        }
        for block in blocks:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}\n{server.output}"
            outputs.append(done.stdout)
    assert '"status":"ready"' in outputs[0]
    assert "bad.safetensors" in outputs[0]
    served = (tmp_path / "served.txt").read_text(encoding="utf-8").splitlines()
    assert len(served) == len(list((tmp_path / "checked").rglob("*.safetensors")))
