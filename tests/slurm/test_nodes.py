"""Runs over several nodes, and a node that fails under one, on a real SLURM."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import CLUSTER, command
from tests.slurm.test_sweep import metrics, scontrol, status, until

SWEEP = [
    "+sweep=gamma",
    "sweep.seeds=[0]",
    "sweep.grid=[{gamma:[0.5]}]",
    "num_steps=40",
    "evaluate.every=20",
    "checkpoint.every=2",
    "prompts.source.num=256",
]


def over(nodes: int, ranks: int) -> list[str]:
    return [text for text in CLUSTER if "per_node" not in text] + [
        f"cluster.nodes={nodes}",
        f"cluster.ranks_per_node={ranks}",
    ]


def all_finished(seen: dict[str, dict]) -> bool:
    return {run["state"] for run in seen.values()} == {"finished"}


@pytest.fixture(scope="module")
def on_one_node(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    outputs = tmp_path_factory.mktemp("one")
    command("submit", *small_run, *SWEEP, f"paths.outputs={outputs}", *over(1, 2))
    until(outputs, all_finished, "finished")
    return metrics(outputs)


@pytest.fixture
def failing() -> Iterator[list[str]]:
    """Nodes to bring back at the end of the test."""
    nodes: list[str] = []
    yield nodes
    for node in nodes:  # refused where it has come back by itself
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)


def test_a_run_over_two_nodes_has_the_metrics_of_one_with_as_many_ranks(
    small_run: list[str], on_one_node: dict[str, list[dict]], tmp_path: Path
):
    command("submit", *small_run, *SWEEP, f"paths.outputs={tmp_path}", *over(2, 1))
    seen = until(
        tmp_path, lambda seen: any(run["state"] == "running" and run["node"] for run in seen.values()), "begun"
    )
    assert {run["node"] for run in seen.values()} <= {"n[1-2]", "n[1,3]", "n[2-3]"}
    until(tmp_path, all_finished, "finished")
    assert metrics(tmp_path) == on_one_node


def test_a_run_whose_node_fails_goes_on_at_another(
    small_run: list[str], on_one_node: dict[str, list[dict]], failing: list[str], tmp_path: Path
):
    command("submit", *small_run, *SWEEP, f"paths.outputs={tmp_path}", *over(1, 2))
    seen = until(tmp_path, lambda seen: all(run["state"] == "running" and run["step"] > 2 for run in seen.values()), "")
    (run,) = seen.values()
    failing.append(run["node"])
    # Drained too, or it is back at its next registration, which may come before the job is elsewhere.
    for state in ("drain", "down"):
        scontrol("update", f"nodename={run['node']}", f"state={state}", "reason=test")
    until(tmp_path, all_finished, "finished")
    (after,) = status(tmp_path).values()
    assert after["attempts"] == 2 and after["node"] != run["node"]
    assert metrics(tmp_path) == on_one_node
