"""Adapters: the model starts as it was, only they change, and what they change is what is sampled from and saved."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from opd.checkpoint import store as checkpoint
from opd.checkpoint.steps import Progress
from opd.config.schema import Lora
from opd.data.batch import Prompt, Sampling
from opd.errors import UserError
from opd.model import lora
from opd.model.load import load_model
from opd.model.optim import Optimizer
from opd.model.policy import Policy
from opd.recipes.tokenizer import build_tokenizer
from opd.rollout.replica import refresh, replicate
from opd.rollout.sampler import TransformersSampler
from tests.unit.checkpoint.test_store import OPTIM
from tests.unit.rollout.families import build
from tests.unit.small import ALONE, root, tiny_qwen3

IDS = torch.tensor([[2, 3, 4, 5, 6]])
SMALL = Lora(rank=4, alpha=8.0, target_modules="all-linear")


def adapted(settings: Lora = SMALL, *, seed: int = 0, tie: bool = False):
    model = tiny_qwen3(dtype=torch.float32, tie=tie)
    lora.add_adapters(model, settings, seed=seed)
    return model, Optimizer(model, OPTIM, num_steps=10)


def learn(model, optimizer: Optimizer, steps: int = 3) -> None:
    for step in range(1, steps + 1):
        model(IDS).logits.square().mean().backward()
        optimizer.step(step)


@pytest.fixture(scope="module")
def learned():
    model, optimizer = adapted()
    learn(model, optimizer)
    return model, optimizer


@pytest.fixture(scope="module")
def saved(learned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to resume from, a final one, and the model that was adapted, in a folder."""
    folder, (model, optimizer) = tmp_path_factory.mktemp("saved"), learned
    tiny_qwen3(dtype=torch.float32).save_pretrained(folder / "base")
    thing = checkpoint.Learned(model, str(folder / "base"), build_tokenizer(), optimizer)
    checkpoint.resumable(thing, Progress(3, None, None), ALONE)(folder / "step_000003", ALONE)
    checkpoint.final(thing, {}, ALONE)(folder / "final", ALONE)
    return folder


def test_the_first_forward_is_the_base_models_exactly():
    model, optimizer = adapted()
    assert torch.equal(model(IDS).logits, tiny_qwen3(dtype=torch.float32)(IDS).logits)
    assert len(optimizer.parameters) == 2 * 2 * 7  # A and B of seven layers in each of two


def test_adapters_alone_change(learned):
    model, optimizer = learned
    base = dict(tiny_qwen3(dtype=torch.float32).named_parameters())
    plain = dict(lora.base_tensors(model))
    assert all(torch.equal(plain[name], weight) for name, weight in base.items())
    assert not torch.allclose(model(IDS).logits, tiny_qwen3(dtype=torch.float32)(IDS).logits, atol=0.1)
    states = optimizer.adamw.state_dict()["state"]
    assert len(states) == 28 and all(entry["exp_avg"].numel() <= 4 * 24 for entry in states.values())


def test_the_seed_alone_decides_how_they_start():
    torch.manual_seed(1)
    one, _ = adapted(seed=5)
    state = torch.get_rng_state()
    other, _ = adapted(seed=5)
    third, _ = adapted(seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    first, same, another = (torch.cat([t.flatten() for t in lora.tensors(m).values()]) for m in (one, other, third))
    assert torch.equal(first, same) and not torch.equal(first, another)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_samplers_copy_has_them_merged(precision: str, learned):
    model, _ = learned
    replica = replicate(model, precision)
    refresh(replica, model, precision)
    assert not lora.adapters(replica)
    torch.testing.assert_close(
        replica(IDS).logits.float(), model(IDS).logits, atol=1e-5 if precision == "float32" else 0.5, rtol=0
    )


@pytest.mark.parametrize("tie", [False, True])
def test_what_is_sampled_is_of_the_newest_adapters(tie: bool):
    model, optimizer = adapted(tie=tie)
    sampler = TransformersSampler(root(model), stop_ids=[1], pad_id=0, dtype="float32", max_batch_tokens=1000)
    policy = Policy(root(model), ALONE, micro_batch_tokens=1000, logit_chunk=64, temperature=1.0)
    prompts, sampling = [Prompt("p", "", "", "", (2, 3, 4))], Sampling(4, 8, 1.0, 1.0, 0)
    for _ in range(2):
        rollout = sampler.sample(prompts, sampling, key=(0,))
        torch.testing.assert_close(policy.scores(rollout).logp, rollout.rollout_logp, atol=1e-4, rtol=0)
        learn(model, optimizer, steps=1)
        stale = sampler.sample(prompts, sampling, key=(0,))
        assert (policy.scores(stale).logp - stale.rollout_logp).abs().max() > 1e-3
        sampler.sync()


def test_a_resumable_checkpoint_holds_adapters_and_goes_on_exactly(saved: Path):
    assert not (saved / "step_000003" / "model.safetensors").exists()
    other, other_optimizer = adapted(seed=9)
    thing = checkpoint.Learned(other, str(saved / "base"), build_tokenizer(), other_optimizer)
    assert checkpoint.load(saved / "step_000003", thing) == Progress(3, None, None)
    reference, reference_optimizer = adapted()
    learn(reference, reference_optimizer, steps=4)
    other(IDS).logits.square().mean().backward()
    other_optimizer.step(4)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_the_final_checkpoint_is_the_merged_model_to_transformers_and_peft(learned, saved: Path):
    expected = learned[0](IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(saved / "final")
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-5, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(saved / "base")
    torch.testing.assert_close(
        peft.PeftModel.from_pretrained(base, str(saved / "final" / "adapter"))(IDS).logits, expected, atol=1e-5, rtol=0
    )


def test_a_folder_of_adapters_is_a_model_to_start_from(learned, saved: Path, tmp_path: Path):
    model = load_model(str(saved / "step_000003"), revision=None, dtype="float32", key="student.model")
    assert not lora.adapters(model) and type(model).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(model(IDS).logits, learned[0](IDS).logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_layer_whose_weight_lies_the_other_way_round_is_adapted_merged_and_saved(tmp_path: Path):
    base, model = build("gpt2"), build("gpt2")
    lora.add_adapters(model, SMALL, seed=0)
    assert {name.rpartition(".")[2] for name in lora.adapters(model)} == {"c_attn", "c_proj", "c_fc"}
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    optimizer = Optimizer(model, OPTIM, num_steps=10)
    learn(model, optimizer)
    expected = model(IDS).logits
    assert not torch.allclose(expected, base(IDS).logits, atol=0.01)
    base.save_pretrained(tmp_path / "base")
    thing = checkpoint.Learned(model, str(tmp_path / "base"), build_tokenizer(), optimizer)
    checkpoint.final(thing, {}, ALONE)(tmp_path / "final", ALONE)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-5, rtol=0)
    adapter = peft.PeftModel.from_pretrained(base, str(tmp_path / "final" / "adapter"))
    torch.testing.assert_close(adapter(IDS).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["q_prj"], "student.lora.target_modules: .*q_prj"),
        (["lm_head"], "student.lora.target_modules: lm_head is not a linear layer between"),
        (["q_proj", "embed_tokens"], "student.lora.target_modules: model.embed_tokens is not a linear layer between"),
    ],
)
def test_what_cannot_be_adapted_is_named(names: list[str], said: str):
    with pytest.raises(UserError, match=said):
        adapted(Lora(rank=4, alpha=8.0, target_modules=names))


def test_a_rank_that_no_layer_has_is_refused():
    most = max(
        min(module.weight.shape) for module in tiny_qwen3(dtype=torch.float32).model.modules() if is_linear(module)
    )
    adapted(Lora(rank=most, alpha=8.0, target_modules="all-linear"))
    with pytest.raises(
        UserError, match=rf"student.lora.rank={most + 1}: no layer has a rank of more than {most}; give"
    ):
        adapted(Lora(rank=most + 1, alpha=8.0, target_modules="all-linear"))


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def test_experts_take_no_adapters_and_what_does_is_named():
    with pytest.raises(
        UserError, match=r"mlp\.experts is not a linear layer .*; choose from k_proj, o_proj, q_proj, v_proj"
    ):
        lora.add_adapters(build("qwen3-moe"), SMALL, seed=0)
