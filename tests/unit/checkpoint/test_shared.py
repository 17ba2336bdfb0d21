"""A checkpoint that several ranks write: a share each, whole tensors, that any number of them goes on from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from opd.checkpoint import atomic, store as checkpoint
from opd.checkpoint.steps import Progress
from opd.checkpoint.store import Learned
from opd.config.schema import Compute, Optim
from opd.model.load import load_model
from opd.model.optim import Optimizer
from opd.model.policy import Policy
from opd.model.sharded import full_tensor, shard
from opd.ranks import dist
from opd.ranks.dist import Ranks
from opd.recipes.tokenizer import build_tokenizer
from tests.forks import run_ranks
from tests.integration.test_ranks import free_port
from tests.multimodal import random_model
from tests.unit.rollout.families import build
from tests.unit.small import rollout_of

PLAIN = Compute(
    dtype="float32", attention=None, activation_checkpointing=False, offload=False, compile=False, rank_timeout=60.0
)
OPTIM = Optim(
    lr=0.01, schedule="constant", warmup_steps=0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, grad_clip=1.0
)
FAMILIES = ("qwen3-tied", "qwen3-moe")
MULTIMODAL = "qwen3_5_moe"
WRITERS, READERS = 3, (1, 2, 3)


class Learner:
    """A model over the ranks that can learn a step."""

    def __init__(self, start: Path, ranks: Ranks):
        self.ranks = ranks
        self.model = load_model(str(start), revision=None, dtype="float32", key="student.model")
        self.policy = Policy(
            shard(self.model, ranks, PLAIN, learns=True),
            ranks,
            micro_batch_tokens=1000,
            logit_chunk=64,
            temperature=1.0,
        )
        self.optimizer = Optimizer(self.model, OPTIM, num_steps=10)
        self.learned = Learned(self.model, "base", build_tokenizer(), self.optimizer)

    def learn(self, step: int) -> None:
        tokens = torch.randint(2, 13, (6, 9), generator=torch.Generator().manual_seed(step)).tolist()
        mine = [row for row in tokens[self.ranks.rank :: self.ranks.size]]
        rollout = rollout_of([row[:3] for row in mine], [row[3:] for row in mine])
        self.policy.backward(rollout, torch.ones(rollout.tokens.shape), None)
        self.optimizer.step(step)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: full_tensor(tensor.detach()).clone() for name, tensor in self.model.state_dict().items()}


def write(ranks: Ranks, folder: Path, family: str) -> dict[str, Any]:
    """Writes a step and a final checkpoint, apart from what the ranks say, and learns one step more."""
    learner, beside = Learner(folder / family, ranks), ranks.with_own_group(timeout=60.0)
    learner.learn(1)
    learned = learner.weights()
    step = checkpoint.resumable(learner.learned, Progress(1, None, None), ranks)
    final = checkpoint.final(learner.learned, {"README.md": "card"}, ranks)
    learner.learn(2)  # what is written is as it was
    step(folder / f"{family}-step", beside)
    final(folder / f"{family}-final", ranks)
    return {"learned": learned, "next": learner.weights()}


def read(ranks: Ranks, folder: Path, family: str) -> dict[str, Any]:
    """Goes on from the checkpoint."""
    learner = Learner(folder / family, ranks)
    assert checkpoint.load(folder / f"{family}-step", learner.learned) == Progress(1, None, None)
    learned = learner.weights()
    learner.learn(2)
    return {"learned": learned, "next": learner.weights()}


def fail(ranks: Ranks, folder: Path, family: str) -> dict[str, Any]:
    """A rank that is not the main one cannot write its share."""
    learner = Learner(folder / family, ranks)
    learner.learn(1)
    if ranks.rank == 1:
        atomic._flush = lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device", str(path)))
    try:
        checkpoint.resumable(learner.learned, Progress(2, None, None), ranks)(folder / f"{family}-step", ranks)
    except OSError as error:
        return {"errno": error.errno, "file": error.filename}
    return {}


def work(rank: int, size: int, port: int, folder: Path, action: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    ranks = dist.start(timeout=120.0, group=True)
    found = {family: globals()[action](ranks, folder, family) for family in (*FAMILIES, MULTIMODAL)}
    torch.save(found, folder / f"{action}_{size}_{rank}.pt")
    dist.stop()


def ranks(size: int, folder: Path, action: str) -> list[dict[str, Any]]:
    """What each of so many ranks found, by family."""
    run_ranks(work, (size, free_port(), folder, action), size)
    return [torch.load(folder / f"{action}_{size}_{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    for family in FAMILIES:
        build(family).save_pretrained(folder / family)
    random_model(MULTIMODAL).save_pretrained(folder / MULTIMODAL)
    return folder


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Any]:
    return ranks(WRITERS, folder, "write")[0]


@pytest.fixture(scope="module")
def resumed(folder: Path, written) -> dict[int, dict[str, Any]]:
    return {size: ranks(size, folder, "read")[0] for size in READERS}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", READERS)
def test_any_number_of_ranks_goes_on_from_it(family: str, size: int, written, resumed):
    for name, tensor in written[family]["learned"].items():
        assert torch.equal(resumed[size][family]["learned"][name], tensor), name
    for name, tensor in written[family]["next"].items():
        found = resumed[size][family]["next"][name]
        assert torch.equal(found, tensor) if size == WRITERS else torch.allclose(found, tensor, atol=1e-5), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["step", "final"])
def test_transformers_reads_what_the_ranks_wrote(family: str, kind: str, folder: Path, written):
    loaded = AutoModelForCausalLM.from_pretrained(folder / f"{family}-{kind}")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, written[family]["learned"][name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_each_rank_wrote_its_share(family: str, folder: Path, written):
    step = folder / f"{family}-step"
    assert atomic.find_damage(step) is None and not list(folder.glob(".*"))
    assert sorted(file.name for file in step.glob("*.json")) == [
        "checksums.json", "config.json", "generation_config.json", "model.safetensors.index.json", "state.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for kind in ("model", "optimizer"):
        files = sorted(step.glob(f"{kind}-*.safetensors"))
        assert [file.name for file in files] == [f"{kind}-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
        sizes = [file.stat().st_size for file in files]
        assert max(sizes) < 0.6 * sum(sizes), sizes
    index = json.loads((step / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == written[family]["learned"].keys() - (
        {"lm_head.weight"} if "tied" in family else set()
    )


def test_a_final_checkpoint_has_the_names_that_its_family_is_published_with(folder: Path, written):
    """And a layer's experts, which are one tensor here, are in one file, as another format may want to join them."""

    def names(kind: str) -> dict[str, str]:
        found = {}
        for path in (folder / f"qwen3-moe-{kind}").glob("model-*.safetensors"):
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path.name)
        return {name: file for name, file in found.items() if ".layers.1.mlp.experts." in name}

    assert {name.split(".experts.")[1] for name in names("step")} == {"gate_up_proj", "down_proj"}
    assert {name.split(".experts.")[1] for name in names("final")} == {
        f"{expert}.{product}_proj.weight" for expert in range(4) for product in ("gate", "up", "down")
    }
    assert len(set(names("final").values())) == 1


def test_a_multimodal_model_is_whole_again_and_any_number_of_ranks_goes_on_with_its_text(
    folder: Path, written, resumed
):
    learned, final = written[MULTIMODAL]["learned"], folder / f"{MULTIMODAL}-final"
    for size in READERS:
        assert all(torch.equal(resumed[size][MULTIMODAL]["learned"][name], learned[name]) for name in learned)
    text = load_model(str(final), revision=None, dtype="float32", key="student.model")
    assert all(torch.equal(tensor, learned[name]) for name, tensor in text.state_dict().items())
    before, after = (AutoModelForImageTextToText.from_pretrained(each) for each in (folder / MULTIMODAL, final))
    theirs = before.state_dict()
    changed = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, theirs[name])}
    assert changed and all(name.startswith(("model.language_model.", "lm_head.")) for name in changed)
    assert [file.name for file in sorted(final.glob("*.safetensors"))] == [
        f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)
    ]


def test_a_rank_that_cannot_write_its_share_is_heard_by_all_and_leaves_what_was_there(folder: Path, written):
    for found in ranks(2, folder, "fail"):
        for family in FAMILIES:
            assert found[family]["errno"] == 28 and "/rank_1/" in found[family]["file"]
    for family in FAMILIES:
        assert atomic.find_damage(folder / f"{family}-step") is None
        assert json.loads((folder / f"{family}-step" / "state.json").read_text())["step"] == 1
    assert not list(folder.glob(".*"))
