"""A whole run on two real ranks: its records are one rank's, and either number of ranks goes on from the other's."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessExitedException

from opd import train as module
from opd.records.run_dir import RunDir
from opd.records.texts import read_texts
from tests.forks import run_ranks
from tests.integration import child
from tests.integration.conftest import composed
from tests.integration.test_ranks import free_port


@pytest.fixture(scope="module")
def two(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of the command on two ranks."""
    outputs = tmp_path_factory.mktemp("two")
    run_ranks(child.rank, (2, free_port(), [*small_run, f"paths.outputs={outputs}"], outputs), 2)
    (folder,) = (outputs / "main").glob("default-*")
    return RunDir(folder)


@pytest.fixture
def train(small_run: list[str], tmp_path: Path):
    """Runs `opd.train` on so many ranks, forked ones where they are two; returns the run directory."""

    def run(ranks: int, *overrides: str) -> RunDir:
        given = [*small_run, f"paths.outputs={tmp_path}", *overrides]
        if ranks == 1:
            module.train(composed(given))
        else:
            run_ranks(child.rank, (ranks, free_port(), given, tmp_path), ranks)
        (folder,) = (tmp_path / "main").glob("default-*")
        return RunDir(folder)

    return run


def weights(folder: RunDir) -> dict[str, torch.Tensor]:
    files = (folder.checkpoints / "final").glob("model*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_two_ranks_keep_the_records_of_one(train, two: RunDir):
    one = train(1)
    assert two.status().state == "finished" and two.manifest()["world_size"] == 2
    for ours, alone in zip(two.metrics(), one.metrics(), strict=True):
        same = {name for name in alone if not name.startswith(("time", "throughput/", "memory/"))}
        assert {name: ours[name] for name in same} == pytest.approx({n: alone[n] for n in same}, rel=2e-3, abs=1e-4)
    for step in one.evaluations():
        assert [s.key for s in two.samples(step)] == [s.key for s in one.samples(step)]
        assert [key for key, _ in read_texts(two, step)] == [s.key for s in two.samples(step)]
    assert len(list((two.checkpoints / "final").glob("model-*-of-00002.safetensors"))) == 2  # a share of each rank
    assert weights(two).keys() == weights(one).keys()
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_number_of_ranks_goes_on_from_the_others_checkpoint(ranks: int, train, two: RunDir, tmp_path: Path):
    folder = tmp_path / "main" / two.path.name
    shutil.copytree(two.path, folder)
    for later in ("step_000003", "step_000004", "final"):
        shutil.rmtree(folder / "checkpoints" / later, ignore_errors=True)
    RunDir(folder).update_status(state="preempted")
    resumed = train(ranks)
    for name, tensor in weights(two).items():
        found = weights(resumed)[name]
        assert torch.equal(found, tensor) if ranks == 2 else torch.allclose(found, tensor, atol=1e-5)


def test_a_batch_that_the_ranks_cannot_share_is_refused(train, tmp_path: Path):
    with pytest.raises(ProcessExitedException):
        train(2, "batch_size=5")
    said = "".join(file.read_text() for file in tmp_path.glob("rank_*.err"))
    assert "opd: mini_batch_size=5: must be a multiple of the 2 ranks" in said
