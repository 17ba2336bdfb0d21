"""The tiny world's student learns as much from vLLM's samples as from our sampler's."""

from pathlib import Path

import pytest

from opd.records.run_dir import RunDir
from opd.train import run_dir, train
from tests.integration.conftest import composed

ROOT = Path(__file__).parents[2]
STEPS = 50


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory):
    """Trains the default run for `STEPS` steps; mean@8 in percent, before and after."""
    outputs = tmp_path_factory.mktemp("demo")

    def score(*overrides: str) -> tuple[float, float]:
        places = [f"paths.models={ROOT / 'models'}", f"paths.outputs={outputs}"]
        short = [f"num_steps={STEPS}", f"evaluate.every={STEPS}", "rollouts.every=0", "checkpoint.every=1000"]
        config = composed([*places, *short, *overrides])
        assert train(config).state == "finished"
        return tuple(100 * line["evaluate/mean@8"] for line in evaluated(run_dir(config)))

    return score


def evaluated(folder: RunDir) -> list[dict[str, float]]:
    return [line for line in folder.metrics() if "evaluate/mean@8" in line]


def test_the_demo_learns_as_much_with_vllm(score):
    """Both ends carry the noise of 50 steps of other samples, of which two standard deviations are about 4 points."""
    ours, vllm = score(), score("rollout=vllm", "rollout.kv_cache_bytes=268435456")
    assert vllm[1] > vllm[0] + 25 and ours[1] > ours[0] + 25
    assert vllm[0] == pytest.approx(ours[0], abs=3) and vllm[1] == pytest.approx(ours[1], abs=6)
