"""Plans against what real models hold: weights, gradients and moments to the byte, activations as torch saves them."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from opd.config.schema import Memory, Optim, RunConfig
from opd.model import fake, passes, shapes
from opd.model.int8 import quantize_layers
from opd.model.load import attention
from opd.model.memory import Machine, MemoryEstimate, Models, estimate_memory, largest_pass
from opd.model.optim import Optimizer
from opd.model.passes import held, saved_activations
from opd.model.policy import Scorer
from opd.model.remedies import remedies
from opd.model.shapes import published, shape
from opd.step.startup_checks import bound_ensemble
from tests.integration.conftest import composed
from tests.unit.rollout.families import build
from tests.unit.small import ALONE, rollout_of, root

GIB = 2**30
A100 = Machine("cuda", 8, 80 * GIB)

# Families whose layers differ, keep a state, share keys and values, compress them, or attend in their own way.
SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 16}
MIXED = ["sliding_attention", "full_attention"] * 2
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
LINEAR |= {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**EXPERTS, **LINEAR, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "mamba2": {"num_heads": 8, "state_size": 4, "n_groups": 2, "chunk_size": 16, "tie_word_embeddings": False},
    "gemma4_text": {
        "layer_types": MIXED,
        "sliding_window": 64,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 32,
        "num_kv_shared_layers": 2,
    },
    "gpt_oss": {**EXPERTS, "layer_types": MIXED, "sliding_window": 64},
    "deepseek_v3": {
        **EXPERTS,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
}


def of_kind(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **{**SIZES, **KINDS[family]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention(config)).eval()


SMALL = ["batch_size=4", "samples_per_prompt=2", "max_response_length=12"]
OPTIM = Optim(1e-3, "constant", 0, [0.9, 0.95], 1e-8, 0.0, 1.0)


def planned(overrides: list[str], machine: Machine = A100) -> tuple[RunConfig, Models, MemoryEstimate]:
    config = composed(["scale=qwen3_4b", *overrides])
    known = [published(model) for model in (config.student.model, *config.teacher.models)]
    assert None not in known
    ensemble = bound_ensemble(config)
    together = sorted({ensemble.needed(step / 200) for step in range(201)})
    models = Models(known[0], known[1:], None, together)  # pyright: ignore
    return config, models, estimate_memory(config, models, machine, config.prompts.max_prompt_length)


def sizes(made: MemoryEstimate) -> dict[str, int]:
    return {item.name.partition(" (")[0]: item.size for item in made.items}


@pytest.mark.parametrize("model", sorted(shapes._published()["models"]))
def test_a_published_shape_has_the_parameters_of_its_model_card(model: str):
    known = published(model)
    assert known is not None
    assert shape(known).numbers / 1e9 == pytest.approx(shapes._published()["models"][model]["parameters"], abs=0.051)
    assert shape(known).vocabulary == 151_936


def test_base_models_share_the_shape_and_end_otherwise():
    base, chat = published("Qwen/Qwen3-4B-Base"), published("Qwen/Qwen3-4B")
    assert base is not None and chat is not None and shape(base) == shape(chat)
    assert shapes.published_ends("Qwen/Qwen3-4B-Base") == {"<|endoftext|>": 151643}
    assert shapes.published_ends("Qwen/Qwen3-4B") == {"<|im_end|>": 151645, "<|endoftext|>": 151643}
    assert published("Qwen/Qwen3-5B") is None


@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "qwen3-tied", "llama-biased", "gpt2", *KINDS])
def test_weights_gradients_and_moments_are_planned_to_the_byte(family: str):
    model = of_kind(family) if family in KINDS else build(family)
    optimizer = Optimizer(model, OPTIM, num_steps=1)
    model(torch.tensor([[3, 4, 5]])).logits.sum().backward()
    gradients = sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    optimizer.step(1)
    moments = sum(state[name].nbytes for state in optimizer.adamw.state.values() for name in ("exp_avg", "exp_avg_sq"))
    models = Models(model.config, [model.config], None, [(0,)])
    found = sizes(estimate_memory(composed(SMALL), models, Machine("cpu", 1, GIB), 8))
    assert found["weights"] == sum(weight.nbytes for weight in model.parameters())
    assert (found["gradients"], found["optimizer moments"]) == (gradients, moments)
    assert found["teachers' weights"] == found["weights"]


@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "qwen3-tied", "llama-biased", "gpt2"])
def test_teachers_in_8_bits_are_planned_to_the_byte(family: str):
    model = build(family, torch.bfloat16)
    models = Models(model.config, [model.config], None, [(0,)])
    found = sizes(estimate_memory(composed([*SMALL, "teacher.dtype=int8"]), models, Machine("cpu", 1, GIB), 8))
    whole = sum(weight.nbytes for weight in model.parameters())
    quantize_layers(model)
    held = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if "inv_freq" not in name)]
    assert found["teachers' weights"] == sum(tensor.nbytes for tensor in held) < whole


def test_hidden_states_that_teachers_keep_are_planned_to_the_byte():
    model = build("qwen3")
    scorer = Scorer(root(model), ALONE, micro_batch_tokens=64, logit_chunk=8, temperature=1.0)
    kept = scorer.empty_hidden(rollout_of([[2]] * 8, [[3] * 12] * 8)).nbytes  # 4 prompts, 2 responses of 12 tokens each
    models = Models(model.config, [model.config, model.config], None, [(0,), (0, 1)])
    config = composed([*SMALL, "support=full", "whitening=none"])
    assert sizes(estimate_memory(config, models, Machine("cpu", 1, GIB), 8))["teachers' hidden states"] == 2 * kept
    # Each of two ranks keeps those of its own prompts.
    assert sizes(estimate_memory(config, models, Machine("cpu", 2, GIB), 8))["teachers' hidden states"] == kept


def test_a_rank_holds_the_share_that_fsdp_gives_the_first():
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model = build("qwen3-tied")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        for block in model.model.layers:  # pyright: ignore
            fully_shard(block, mesh=dist.device_mesh.init_device_mesh("cpu", (3,)))
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (3,)))
        local = sum(weight.to_local().numel() for weight in model.parameters())  # pyright: ignore
    finally:
        dist.destroy_process_group()
    assert shape(model.config).share(3) == local < shape(model.config).numbers


@contextlib.contextmanager
def saving(model: PreTrainedModel) -> Iterator[dict[Any, Any]]:
    """Storages that autograd saves, without the model's own weights."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    found: dict[Any, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage  # alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "qwen3-wide", "llama-biased", "gemma3-mixed"])
def test_activations_are_those_that_torch_saves(family: str, dtype: torch.dtype, checkpointing: bool):
    model = build(family, dtype, num_hidden_layers=6)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    with saving(model) as found:
        model.base_model(torch.zeros(3, 50, dtype=torch.long), use_cache=False)
    real = sum(storage.nbytes() for storage in found.values())
    ours = saved_activations(model.config, rows=3, length=50, dtype=dtype, kind="blockwise")
    remade = max(ours.layers) if checkpointing else 0  # in the backward pass
    assert ours.total(checkpointing) - remade == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("family", KINDS)
def test_activations_of_layers_that_differ_are_those_that_torch_saves(family: str):
    model = of_kind(family)
    with saving(model) as found:
        model.base_model(torch.zeros(3, 50, dtype=torch.long), use_cache=False)
    real = sum(storage.nbytes() for storage in found.values())
    kind = "eager" if shape(model.config).eager else "blockwise"
    ours = saved_activations(model.config, rows=3, length=50, dtype=torch.float32, kind=kind)
    assert not ours.bounded and len(ours.layers) == 4
    assert ours.total(False) == pytest.approx(real, rel=0.15)


def test_attention_that_stores_its_weights_is_planned_with_them():
    def activations(family: str, *more: str) -> int:
        config = of_kind(family).config
        models = Models(config, [config], None, [(0,)])
        machine = Machine("cpu", 1, GIB)
        return sizes(estimate_memory(composed([*SMALL, *more]), models, machine, 200))["activations"]

    work = largest_pass(composed(SMALL), 1, 200)
    square = work.rows * 4 * work.length**2 * 4  # of a layer
    assert activations("llama4_text", "compute.attention=eager") - activations("llama4_text") > 4 * square
    assert activations("gpt_oss") > 4 * square, "which transformers runs so unless told otherwise"


def test_a_pass_that_cannot_be_tried_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch):
    config = build("qwen3").config
    exact = saved_activations(config, rows=2, length=31, dtype=torch.float32, kind="eager")
    kept = held(config)
    monkeypatch.setattr(fake, "MOST", 1)
    passes._held.cache_clear()
    passes._saved.cache_clear()
    bound = saved_activations(config, rows=2, length=31, dtype=torch.float32, kind="eager")
    models = Models(config, [config], None, [(0,)])
    names = {item.name for item in estimate_memory(composed(SMALL), models, Machine("cpu", 1, GIB), 8).items}
    assert bound.bounded and bound.total(False) >= exact.total(False) and bound.total(True) >= exact.total(True)
    assert held(config).bounded and held(config).token >= kept.token
    assert {name for name in names if "at most" in name} == {
        f"{name} (at most: without weights, its passes cannot be tried)"
        for name in ("activations", "sampler's keys and values")
    }
    passes._held.cache_clear()
    passes._saved.cache_clear()


@pytest.mark.parametrize("family", KINDS)
def test_what_a_sequence_keeps_is_what_the_family_s_own_cache_holds(family: str):
    model, length = of_kind(family), 13
    with torch.no_grad():
        output = model.base_model(torch.zeros(1, length, dtype=torch.long), use_cache=True)
    cache = output.get("past_key_values", None) or output["cache_params"]
    kept = [value for layer in cache.layers for value in vars(layer).values()]
    flat = [each for value in kept for each in (value.values() if isinstance(value, dict) else [value])]
    numbers = sum(each.numel() for each in flat if isinstance(each, Tensor) and each.is_floating_point())
    found = held(model.config)
    assert not found.bounded and found.token * length + found.state == numbers > 0


def test_the_plain_attention_keeps_a_square_and_is_what_float32_gets_on_a_gpu():
    config = build("qwen3").config
    blockwise, plain = (
        saved_activations(config, rows=2, length=64, dtype=torch.float32, kind="math" if plain else "blockwise")
        for plain in (False, True)
    )
    square = 2 * config.num_attention_heads * 64 * 64 * 4
    assert min(plain.layers) - max(blockwise.layers) >= 0.8 * square
    low, high = planned(["compute.dtype=bfloat16"])[2], planned([])[2]
    assert sizes(high)["activations"] > 5 * sizes(low)["activations"]


def test_what_a_rank_holds_of_the_published_setting():
    _, _, made = planned(["compute.dtype=bfloat16", "compute.activation_checkpointing=true"])
    found = sizes(made)
    assert found["weights"] == found["gradients"] == pytest.approx(4 * 4.0225e9 / 8, rel=1e-3)
    assert found["optimizer moments"] == 2 * found["weights"]
    assert found["sampler's copy"] == pytest.approx(4 * 4.0225e9, rel=1e-3)  # whole on every rank
    assert found["sampler's keys and values"] == 32_768 * 36 * 2 * 8 * 128 * 4
    assert found["logit chunks"] == 2 * 4 * 2048 * 151_936


def test_hard_switch_holds_one_teacher_and_a_mean_all_of_them():
    one = sizes(planned(["+experiment=hard_switch"])[2])["teachers' weights"]
    two = sizes(planned(["+experiment=soft_switch"])[2])["teachers' weights"]
    whole = sizes(planned(["+experiment=arithmetic"])[2])["teachers' weights"]
    assert one == pytest.approx(4 * 32.76e9 / 8, rel=1e-3)
    assert two == pytest.approx(4 * (32.76e9 + 14.77e9) / 8, rel=1e-3)
    assert whole == pytest.approx(4 * (32.76e9 + 14.77e9 + 8.19e9 + 4.02e9) / 8, rel=1e-3)


def test_more_ranks_and_offloading_leave_more_room():
    _, _, eight = planned(["compute.dtype=bfloat16"])
    _, _, sixteen = planned(["compute.dtype=bfloat16"], Machine("cuda", 16, 80 * GIB))
    _, _, away = planned(["compute.dtype=bfloat16", "compute.offload=true"])
    assert sizes(sixteen)["optimizer moments"] == pytest.approx(sizes(eight)["optimizer moments"] / 2, rel=1e-3)
    assert away.total("updating") < 1 * GIB < 20 * GIB < eight.total("updating")


def test_a_plan_that_does_not_fit_names_settings_under_which_it_does():
    config, models, made = planned([])
    turned = remedies(config, models, A100, 2048)
    assert not made.fits and turned
    assert planned(turned)[2].fits
    for needless in turned:
        assert not planned([name for name in turned if name != needless])[2].fits


def test_what_fits_needs_no_remedy_and_what_cannot_gets_all_that_help():
    config, models, _ = planned(["compute.dtype=bfloat16", "compute.activation_checkpointing=true"])
    tiny = Machine("cuda", 8, GIB)
    assert "compute.offload=true" in remedies(config, models, tiny, 2048)
    assert not estimate_memory(config, models, tiny, 2048).fits
    roomy = replace(A100, memory=800 * GIB)
    assert estimate_memory(config, models, roomy, 2048).fits and remedies(config, models, roomy, 2048) == []


def test_the_largest_micro_batch_is_one_longest_row_or_all_the_tokens_it_may_have():
    config = composed(SMALL)  # 4 prompts of 2 responses of at most 12 tokens
    long = replace(config, memory=Memory(micro_batch_tokens=5, logit_chunk=8))
    assert (largest_pass(long, 1, 20).rows, largest_pass(long, 1, 20).length) == (1, 31)
    several = replace(config, memory=Memory(micro_batch_tokens=70, logit_chunk=8))
    assert (largest_pass(several, 1, 20).rows, largest_pass(several, 1, 20).length) == (3, 23)
    everything = replace(config, memory=Memory(micro_batch_tokens=100_000, logit_chunk=8))
    assert (largest_pass(everything, 1, 20).rows, largest_pass(everything, 1, 20).length) == (8, 31)
    assert largest_pass(everything, 2, 20).rows == 4
