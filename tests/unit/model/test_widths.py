"""A model that is cut is the model whose head was cut by hand: values, gradients, samples, config and names."""

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from opd.errors import UserError
from opd.model.shapes import shape
from opd.model.widths import Vocabulary, cut, narrowed, unused_ids, width
from opd.recipes.tokenizer import build_tokenizer
from tests.unit.rollout.families import FAMILIES, PLAIN, SIZES, VOCAB, prompts, sampler

WIDE = VOCAB + 4
HEADS = {
    **{name: FAMILIES[name] for name in ("qwen3", "qwen3-tied", "qwen3-moe", "gpt2", "gemma3-mixed")},
    "phi": (transformers.PhiConfig, {**SIZES, "num_key_value_heads": 4}),  # a head with a bias
    "bloom": (transformers.BloomConfig, {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
}
IDS = torch.tensor([[3, 5, 12, 4, 0, 7], [1, 2, 9, 11, 8, 6]])


def build(family: str, vocab_size: int, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, sizes = HEADS[family]
    config = kind(**{**sizes, "vocab_size": vocab_size, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases too
            weight.copy_(torch.randn_like(weight) * 0.4)
    return model


def cut_by_hand(model: PreTrainedModel, family: str, **changes) -> PreTrainedModel:
    narrow = build(family, VOCAB, **changes)
    state = {name: tensor[:VOCAB] if len(tensor) == WIDE else tensor for name, tensor in model.state_dict().items()}
    narrow.load_state_dict(state)
    return narrow


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """Of a sum over the whole vocabulary, as a divergence is."""
    logp = model(IDS).logits.log_softmax(-1)
    (logp.exp() * (logp - torch.arange(VOCAB))).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", HEADS)
def test_a_model_that_is_cut_is_the_one_cut_by_hand(family: str):
    model = build(family, WIDE)
    whole, config = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config)
    expected = cut_by_hand(model, family)
    further = cut(model, VOCAB, key="student.model")
    assert further is not None
    assert model.config.to_dict() == expected.config.to_dict() == narrowed(config, VOCAB).to_dict()
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in expected.state_dict().items()}
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    ours, by_hand = gradients(model), gradients(expected)
    assert ours.keys() == by_hand.keys() and all(torch.equal(ours[name], by_hand[name]) for name in ours)
    again = further.joined(model.state_dict())
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)
    assert cut(model, VOCAB, key="student.model") is None, "nothing is left to cut"


@pytest.mark.parametrize("family", ["qwen3-tied", "gpt2"])
def test_tied_weights_stay_tied(family: str):
    model = build(family, WIDE)
    cut(model, VOCAB, key="student.model")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # pyright: ignore
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == VOCAB  # pyright: ignore


@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied"])
def test_samples_are_those_of_the_model_cut_by_hand(family: str):
    model = build(family, WIDE)
    expected = sampler(cut_by_hand(model, family)).sample(prompts(), PLAIN, key=(1,))
    wide = sampler(copy.deepcopy(model)).sample(prompts(), PLAIN, key=(1,))
    cut(model, VOCAB, key="student.model")
    rollout = sampler(model).sample(prompts(), PLAIN, key=(1,))
    assert torch.equal(rollout.tokens, expected.tokens) and torch.equal(rollout.rollout_logp, expected.rollout_logp)
    assert (wide.tokens >= VOCAB).any(), "uncut, some responses would have further ids"


def test_a_padding_id_that_is_cut_is_none():
    model = build("qwen3", WIDE, pad_token_id=WIDE - 1)
    further = cut(model, VOCAB, key="student.model")
    assert model.get_input_embeddings().padding_idx is model.config.pad_token_id is None  # pyright: ignore
    assert further is not None and further.settings == {"vocab_size": WIDE, "pad_token_id": WIDE - 1}
    assert shape(model.config).vocabulary == VOCAB, "such a config makes a model"


def test_the_config_of_a_final_checkpoint_is_the_models_own(tmp_path):
    model = build("qwen3-tied", WIDE, pad_token_id=WIDE - 1)
    model.config.save_pretrained(tmp_path / "own")
    further = cut(model, VOCAB, key="student.model")
    assert further is not None
    further.save_config(model, tmp_path / "final")
    own, final = ((tmp_path / name / "config.json").read_text() for name in ("own", "final"))
    assert own == final and width(model.config) == VOCAB


def test_what_cannot_be_cut_is_refused_by_name():
    config = transformers.CpmAntConfig(
        vocab_size=WIDE, hidden_size=16, num_attention_heads=2, dim_head=8, dim_ff=24, num_hidden_layers=1
    )
    with pytest.raises(UserError, match=r"^student\.model: the output head of this CpmAntForCausalLM cannot be cut"):
        cut(transformers.AutoModelForCausalLM.from_config(config), VOCAB, key="student.model")


def test_logits_that_are_others_after_a_cut_are_refused():
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) - self.weight.sum()

    model = build("qwen3", WIDE)
    odd = Odd(16, WIDE, bias=False)
    model.set_output_embeddings(odd)
    with pytest.raises(UserError, match=r"^teacher\.models\.0: the output head of this Qwen3ForCausalLM cannot be cut"):
        cut(model, VOCAB, key="teacher.models.0")


# ---- the vocabulary of a run

HEADS_OF = {"student.model": 40, "teacher.models.0": 31, "teacher.models.1": 33}


def test_the_narrowest_head_is_the_vocabulary_and_the_wider_are_said():
    vocabulary = Vocabulary(HEADS_OF, None)
    assert vocabulary.size == 31
    assert vocabulary.said() == [
        "the vocabulary is the 31 ids of teacher.models.0: of the output head of student.model (40 rows) and "
        "teacher.models.1 (33 rows), further rows take no part"
    ]
    assert Vocabulary({"student.model": 31, "teacher.models.0": 31}, None).said() == []


def test_fewer_ids_may_be_asked_for_but_not_more():
    assert Vocabulary(HEADS_OF, 30).size == 30
    assert Vocabulary(HEADS_OF, 30).said()[0].startswith("the vocabulary is the 30 ids of student.vocab_size: ")
    with pytest.raises(UserError, match=r"^student\.vocab_size=32: the output head of teacher\.models\.0 has 31 rows"):
        Vocabulary(HEADS_OF, 32)


def test_a_vocabulary_without_tokens_of_the_texts_is_refused():
    tokenizer = build_tokenizer()
    last = max(tokenizer.get_vocab().values())
    Vocabulary(HEADS_OF, None).check(tokenizer, [1])
    with pytest.raises(
        UserError, match=rf"^teacher\.models\.0: its vocabulary is {last} ids, and .* up to id {last}; "
    ):
        Vocabulary({"student.model": 40, "teacher.models.0": last}, None).check(tokenizer, [1])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<stop>"]})  # the last two
    tokenizer.add_tokens(["<more>"])
    Vocabulary(HEADS_OF, None).check(tokenizer, [1])
    stop = tokenizer.get_vocab()["<stop>"]
    with pytest.raises(
        UserError, match=rf"^student\.stop_tokens: '<stop>' has the id {stop}, and .* 31 ids of teacher"
    ):
        Vocabulary(HEADS_OF, None).check(tokenizer, [1, stop])


def test_ids_without_a_token_are_read_as_no_text():
    tokenizer = build_tokenizer()
    unused = unused_ids(tokenizer, 34)
    assert unused.tolist() == [31, 32, 33] and unused_ids(tokenizer, 31).tolist() == []
    assert tokenizer.decode([5, *unused.tolist(), 6]) == tokenizer.decode([5, 6])
