"""The sampler against plain forwards of the learner, `generate`, known distributions, and itself in other batches."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import PreTrainedModel

from opd.data.batch import Prompt, Rollout, Sampling
from opd.errors import UserError
from opd.rollout import continuous
from opd.rollout.fused_forward import can_fuse
from opd.rollout.sampler import TransformersSampler
from tests.unit.rollout.families import (
    FAMILIES,
    LEAN,
    PAD,
    PLAIN,
    STOPS,
    VOCAB,
    build,
    double_norms,
    prompts,
    sampler,
    warp,
)
from tests.unit.small import root


def reference_logp(model: PreTrainedModel, rollout: Rollout, sampling: Sampling) -> torch.Tensor:
    """Row by row, by one forward over prompt and response, through the warpers of `generate`."""
    logp = torch.zeros(rollout.tokens.shape, dtype=torch.promote_types(model.dtype, torch.float32))
    for row in range(len(rollout)):
        prompt = rollout.prompt[row][rollout.prompt_mask[row]]
        response = rollout.tokens[row][rollout.mask[row]]
        with torch.no_grad():
            logits = model(torch.cat((prompt, response))[None], use_cache=False).logits
        logits = logits[0, len(prompt) - 1 : -1].to(logp.dtype)
        logits = warp(logits, sampling)
        logp[row, : len(response)] = logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]
    return logp


@pytest.fixture
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    double_norms(monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_logp_is_the_learners_own(family: str):
    model = build(family)
    assert can_fuse(model) == (family in LEAN)
    rollout = sampler(model).sample(prompts(), PLAIN, key=(1,))
    assert 3 < rollout.mask.sum(1).float().mean() < 18, "responses of mixed length, or the test shows little"
    torch.testing.assert_close(rollout.rollout_logp, reference_logp(model, rollout, PLAIN), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", [(0.7, 0.9, 0), (1.0, 1.0, 4), (1.4, 0.7, 6), (0.5, 1.0, 0)])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_logp_of_truncated_distribution(family: str, setting: tuple[float, float, int]):
    sampling = Sampling(3, 20, *setting)
    model = build(family)
    rollout = sampler(model).sample(prompts(), sampling, key=(1,))
    torch.testing.assert_close(rollout.rollout_logp, reference_logp(model, rollout, sampling), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", sorted(LEAN))
@pytest.mark.usefixtures("norms_in_float64")
def test_logp_is_exact_in_float64(family: str):
    model = build(family, torch.float64)
    rollout = sampler(model, max_batch_tokens=100).sample(prompts(), PLAIN, key=(1,))
    assert rollout.rollout_logp.dtype == torch.float64
    torch.testing.assert_close(rollout.rollout_logp, reference_logp(model, rollout, PLAIN), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mistral-sliding"])
@pytest.mark.usefixtures("norms_in_float64")
def test_the_batch_changes_nothing(family: str):
    """Few and many slots, rows that join late, window moves, another order, other company: token for token the same."""
    model, given = build(family, torch.float64), prompts(24)
    whole = sampler(model).sample(given, PLAIN, key=(1,))
    assert whole.prompt_mask.sum(1).unique().numel() > 4
    for max_batch_tokens in (29, 60, 150, 400):
        part = sampler(model, max_batch_tokens=max_batch_tokens).sample(given, PLAIN, key=(1,))
        assert torch.equal(part.tokens, whole.tokens)
        assert torch.equal(part.mask, whole.mask)
        torch.testing.assert_close(
            part.rollout_logp, whole.rollout_logp, rtol=0, atol=1e-7 if family != "qwen3" else 1e-12
        )
    some = sampler(model, max_batch_tokens=150).sample(given[::-3], replace(PLAIN, num_samples=2), key=(1,))
    rows = [3 * index + sample for index in range(len(given))[::-3] for sample in range(2)]
    width = some.tokens.shape[1]
    assert torch.equal(some.tokens, whole.tokens[rows, :width])
    assert torch.equal(some.truncated, whole.truncated[rows])


@pytest.fixture
def nan_memory():
    """Fresh memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("max_batch_tokens", [100, 500, 5_000])
@pytest.mark.usefixtures("nan_memory")
def test_no_uninitialised_reads(family: str, max_batch_tokens: int):
    rollout = sampler(build(family), max_batch_tokens=max_batch_tokens).sample(prompts(40), PLAIN, key=(1,))
    assert rollout.rollout_logp.isfinite().all()


@pytest.mark.parametrize("close", [1, 10**9])
def test_compaction_does_not_change_samples(monkeypatch: pytest.MonkeyPatch, close: int):
    """Slots whose branch has ended stay for long, past the last position of the model, or not for a step."""
    given = prompts(40)
    model = build("gpt2", torch.float64, n_positions=9 + PLAIN.max_tokens)
    usual = sampler(model, max_batch_tokens=500).sample(given, PLAIN, key=(1,))
    monkeypatch.setattr(continuous, "COMPACT_SHARE", close)
    found = sampler(model, max_batch_tokens=500).sample(given, PLAIN, key=(1,))
    assert torch.equal(found.tokens, usual.tokens)
    torch.testing.assert_close(found.rollout_logp, usual.rollout_logp, rtol=0, atol=1e-7)


def test_buffers_are_reused():
    ours, given = sampler(build()), prompts()
    first = ours.sample(given, PLAIN, key=(1,))
    buffers = [buffer.data_ptr() for buffer in ours.way.batch.keywords["pool"].buffers]
    assert len(buffers) == 4
    ours.sample(given, replace(PLAIN, max_tokens=5), key=(2,))
    again = ours.sample(given, PLAIN, key=(1,))
    assert [buffer.data_ptr() for buffer in ours.way.batch.keywords["pool"].buffers] == buffers
    assert torch.equal(first.rollout_logp, again.rollout_logp)


def test_key_decides():
    model = build()
    first, again, other = (sampler(model).sample(prompts(), PLAIN, key=key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.rollout_logp, again.rollout_logp)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)
    rows = {tuple(row) for row in sampler(model).sample([prompts()[0]] * 5, PLAIN, key=(1,)).tokens.tolist()}
    assert len(rows) > 10, "samples of one prompt, and of a prompt given twice, are drawn apart"


def test_layout():
    rollout = sampler(build()).sample(prompts(), PLAIN, key=(1,))
    lengths = rollout.mask.sum(1)
    assert rollout.group.tolist() == [index for index in range(7) for _ in range(3)]
    for row, index in enumerate(rollout.group.tolist()):
        assert tuple(rollout.prompt[row][rollout.prompt_mask[row]].tolist()) == prompts()[index].token_ids
    assert rollout.prompt_mask[:, -1].all(), "prompts are padded on the left"
    assert torch.equal(rollout.mask, torch.arange(rollout.tokens.shape[1]) < lengths[:, None]), "responses on the right"
    assert rollout.tokens.shape[1] == lengths.max()
    assert (rollout.tokens[~rollout.mask] == PAD).all()
    assert (rollout.rollout_logp[~rollout.mask] == 0).all()
    assert (rollout.rollout_logp[rollout.mask] < 0).all()


def test_response_includes_stop_token():
    sampling = replace(PLAIN, num_samples=40)
    rollout = sampler(build()).sample(prompts(), sampling, key=(1,))
    last = rollout.tokens.gather(1, rollout.mask.sum(1, keepdim=True) - 1)[:, 0]
    is_stop = torch.isin(rollout.tokens, torch.tensor(STOPS)) & rollout.mask
    assert torch.equal(is_stop.any(1), torch.isin(last, torch.tensor(STOPS)))
    assert is_stop.sum(1).max() == 1, "nothing follows a stop token"
    assert set(last.tolist()) >= set(STOPS), "both stop tokens occur"
    assert rollout.mask.sum(1).min() == 1, "some response stops at its first token"
    assert torch.equal(rollout.truncated, ~is_stop.any(1))
    assert 0 < rollout.truncated.sum() < len(rollout)
    assert (rollout.mask.sum(1)[rollout.truncated] == sampling.max_tokens).all()


def test_pad_may_be_a_stop_token_or_be_sampled():
    model = build()
    as_stop = TransformersSampler(root(model), stop_ids=STOPS, pad_id=1, dtype="float32", max_batch_tokens=10_000)
    rollout, usual = as_stop.sample(prompts(), PLAIN, key=(1,)), sampler(model).sample(prompts(), PLAIN, key=(1,))
    assert torch.equal(rollout.mask, usual.mask)
    assert torch.equal(rollout.truncated, usual.truncated)
    assert (usual.tokens[usual.mask] == PAD).any(), "the pad token is sampled here, and is then part of the response"


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_greedy_is_generate(family: str):
    model = build(family)
    rollout = sampler(model).sample(prompts(), Sampling(1, 20, 0.0, 1.0, 0), key=(1,))
    assert (rollout.rollout_logp == 0).all()
    theirs = model.generate(  # pyright: ignore
        rollout.prompt, attention_mask=rollout.prompt_mask.long(), do_sample=False, max_new_tokens=20,
        eos_token_id=list(STOPS), pad_token_id=PAD,
    )[:, rollout.prompt.shape[1] :]  # fmt: skip
    assert torch.equal(theirs, rollout.tokens)
    assert rollout.truncated.any() or family == "gpt2"


@pytest.mark.parametrize("setting", [(1.0, 1.0, 0), (0.8, 0.8, 0), (1.2, 1.0, 5), (1.1, 0.9, 8)])
@pytest.mark.parametrize("max_batch_tokens", [2_000, 10**6])
def test_tokens_follow_the_distribution(setting: tuple[float, float, int], max_batch_tokens: int):
    """χ² of the first two tokens against their exact joint distribution. A right sampler fails one seed in 10⁴."""
    sampling = Sampling(20_000, 2, *setting)
    model, prompt = build(), prompts()[0]
    rollout = sampler(model, max_batch_tokens=max_batch_tokens).sample([prompt], sampling, key=(4,))
    pairs = [(first, second) for first in range(VOCAB) for second in (range(VOCAB) if first not in STOPS else [None])]
    # The exact joint, by scoring every possible response.
    tokens = torch.tensor([[first, PAD if second is None else second] for first, second in pairs])
    mask = torch.tensor([[True, second is not None] for _, second in pairs])
    every = Rollout(
        prompt=rollout.prompt[:1].expand(len(pairs), -1),
        prompt_mask=rollout.prompt_mask[:1].expand(len(pairs), -1),
        tokens=tokens,
        mask=mask,
        learned=mask,
        rollout_logp=torch.zeros(tokens.shape),
        group=torch.zeros(len(pairs), dtype=torch.long),
        truncated=mask[:, 1],
    )
    expected = reference_logp(model, every, sampling).sum(1).exp().double().numpy()
    assert abs(expected.sum() - 1) < 1e-5
    ids = {pair: index for index, pair in enumerate(pairs)}
    observed = np.zeros(len(pairs))
    for (first, second), (_, continues) in zip(rollout.tokens.tolist(), rollout.mask.tolist(), strict=True):
        observed[ids[first, second if continues else None]] += 1
    assert observed[expected == 0].sum() == 0
    expected = expected / expected.sum() * len(rollout)
    common = expected >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    enough = expected > 0
    assert enough.sum() > 8
    assert scipy.stats.chisquare(observed[enough], expected[enough]).pvalue > 1e-4


def test_low_precision_copy_follows_sync():
    model = build("qwen3-tied")
    for dtype, most in (("bfloat16", 0.3), ("int8", 0.3)):
        ours = sampler(model, dtype)
        rollout = ours.sample(prompts(), PLAIN, key=(1,))
        gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
        assert 1e-4 < gap.mean() < gap.max() < most, dtype
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        stale = ours.sample(prompts(), PLAIN, key=(1,))
        assert torch.equal(stale.tokens, rollout.tokens), "the copy is as it was at the last sync"
        ours.sync()
        fresh = ours.sample(prompts(), PLAIN, key=(1,))
        gap = (fresh.rollout_logp - reference_logp(model, fresh, PLAIN))[fresh.mask].abs()
        assert 1e-4 < gap.mean() < gap.max() < most, dtype
        assert not torch.equal(fresh.rollout_logp, rollout.rollout_logp)


def test_float32_is_the_learner_itself():
    model = build()
    ours = sampler(model)
    assert ours.model is model
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    rollout = ours.sample(prompts(), PLAIN, key=(1,))
    torch.testing.assert_close(rollout.rollout_logp, reference_logp(model, rollout, PLAIN), rtol=0, atol=1e-5)


def test_sampling_has_no_side_effects():
    model = build("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    model.gradient_checkpointing_enable()
    model.train()
    state = torch.random.get_rng_state()
    for dtype in ("float32", "bfloat16", "int8"):
        rollout = sampler(model, dtype).sample(prompts(), PLAIN, key=(1,))
        if dtype == "float32":
            model.eval()
            torch.testing.assert_close(rollout.rollout_logp, reference_logp(model, rollout, PLAIN), rtol=0, atol=1e-5)
            model.train()
        assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    # The rollout can take part in a backward pass, and so can the weights.
    logits = model(rollout.tokens).logits.float()
    (logits.log_softmax(-1).gather(-1, rollout.tokens[..., None])[..., 0] - rollout.rollout_logp).exp().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_no_prompts_one_row_one_token():
    ours = sampler(build())
    nothing = ours.sample([], PLAIN, key=(1,))
    assert len(nothing) == 0
    assert nothing.tokens.shape == nothing.mask.shape == nothing.rollout_logp.shape == (0, 0)
    one = ours.sample(prompts(1), Sampling(1, 1, 1.0, 1.0, 0), key=(1,))
    assert one.tokens.shape == (1, 1)
    assert one.truncated.tolist() == [one.tokens.item() not in STOPS]
    short = ours.sample(prompts(), replace(PLAIN, max_tokens=1), key=(1,))
    assert torch.equal(short.tokens, ours.sample(prompts(), PLAIN, key=(1,)).tokens[:, :1])


@pytest.fixture
def watched() -> tuple[PreTrainedModel, list[int]]:
    """A model (not lean, so that its forward can be watched) and how many tokens each call of it reads."""
    model, fed = build("gpt2"), []
    model.register_forward_pre_hook(lambda _, __, given: fed.append(given["input_ids"].numel()), with_kwargs=True)
    return model, fed


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_common_prefixes_are_computed_once(watched: tuple[PreTrainedModel, list[int]], temperature: float):
    model, fed = watched
    ours = sampler(model)
    fed.clear()
    rollout = ours.sample(prompts(), replace(PLAIN, num_samples=6, temperature=temperature), key=(1,))
    distinct = {
        (group, tuple(tokens[: end + 1]))
        for group, tokens, length in zip(
            rollout.group.tolist(), rollout.tokens.tolist(), rollout.mask.sum(1).tolist(), strict=True
        )
        for end in range(length - 1)
    }
    assert len(distinct) < (rollout.mask.sum(1) - 1).sum()
    assert fed[0] == 7 * rollout.prompt.shape[1], "every prompt once"
    # Besides, a few slots whose branch has ended.
    assert len(distinct) <= sum(fed[1:]) <= 1.2 * len(distinct)


def test_broken_rows_end_at_once(watched: tuple[PreTrainedModel, list[int]]):
    model, fed = watched
    break_at(0, torch.nan)(model)
    ours = sampler(model)
    fed.clear()
    with pytest.raises(UserError):
        ours.sample(prompts(), PLAIN, key=(1,))
    assert len(fed) == 1


def break_at(position: int, value: float) -> Callable[[PreTrainedModel], None]:
    """The first token's logits stay whole; a later one's do not."""

    def apply(model: PreTrainedModel) -> None:
        with torch.no_grad():
            if position == 0:
                model.lm_head.weight[5] = value  # pyright: ignore
            else:
                model.get_input_embeddings().weight[3:6] = value  # pyright: ignore

    return apply


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_broken_weights_are_refused(family: str, temperature: float, value: float, position: int):
    model = build(family)
    model.config._name_or_path = "students/broken"
    break_at(position, value)(model)
    given = [Prompt("only", "", "", "", (7, 8))]
    sampling = replace(PLAIN, temperature=temperature, num_samples=50)
    with pytest.raises(UserError, match=r"students/broken.*NaN or infinite.*response token \d+ of prompt only"):
        sampler(model).sample(given, sampling, key=(1,))


@pytest.mark.parametrize(
    ("token_ids", "changes", "says"),
    [
        ((), {}, "Prompt bad has no tokens"),
        ((3, VOCAB), {}, "Prompt bad holds a token id outside the vocabulary of .*0 to 12"),
        ((-1,), {}, "outside the vocabulary"),
        ((3,) * 50, {}, "50 tokens and a response may have 20, more together than the 64 positions"),
        ((3,) * 15, {}, "15 tokens and a response may have 20, more together than the 30 max_batch_tokens"),
        ((3,), {"top_p": 0.0}, "top_p is 0.0"),
        ((3,), {"top_p": 1.1}, "top_p is 1.1"),
        ((3,), {"temperature": -1.0}, "temperature=-1.0.*out of range"),
        ((3,), {"num_samples": 0}, "num_samples=0.*out of range"),
        ((3,), {"max_tokens": 0}, "max_tokens=0.*out of range"),
    ],
)
def test_bad_requests_are_refused(token_ids: tuple[int, ...], changes: dict, says: str):
    ours = sampler(build(), max_batch_tokens=30 if len(token_ids) == 15 else 1000)
    with pytest.raises(UserError, match=says):
        ours.sample([*prompts(1), Prompt("bad", "", "", "", token_ids)], replace(PLAIN, **changes), key=(1,))


@pytest.mark.parametrize("stop_ids", [(), (1, VOCAB)])
def test_refuses_unknown_stop_tokens(stop_ids: tuple[int, ...]):
    with pytest.raises(UserError, match=r"stop tokens of .*Qwen3ForCausalLM"):
        TransformersSampler(root(build()), stop_ids=stop_ids, pad_id=0, dtype="float32", max_batch_tokens=100)
