import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from opd.data.dataset import load_problems
from opd.data.environment import single_turn
from opd.data.problem import Problem
from opd.data.prompts import batch_indices, encode, epoch_order, unreadable
from opd.errors import UserError
from opd.recipes.tokenizer import build_tokenizer
from tests.shared_data import shared
from tests.unit.data.test_dataset import SOURCE

# ---- what a model is shown


PROBLEMS = [Problem(f"p{number}", f"{number}+1=", str(number + 1), "addition") for number in (1, 22, 333)]
PLAIN = {"template": "raw", "system": None, "prefix": "", "suffix": "", "max_prompt_length": 100}
PLAIN |= {"environment": single_turn()}


@pytest.fixture(scope="module")
def chat_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/torchtitan-test"))
    tokenizer.chat_template = shared("tokenizers/trl-chat-templates/qwen3.jinja").read_text()
    return tokenizer


def test_raw_prompt_is_the_text_alone():
    tokenizer = build_tokenizer()
    prompts, dropped = encode(PROBLEMS, tokenizer, **PLAIN | {"prefix": "(", "suffix": ")"})
    assert dropped == []
    assert [tokenizer.decode(prompt.token_ids) for prompt in prompts] == ["(1+1=)", "(22+1=)", "(333+1=)"]
    assert [(prompt.id, prompt.problem, prompt.answer, prompt.domain) for prompt in prompts] == [
        (problem.id, problem.problem, problem.answer, problem.domain) for problem in PROBLEMS
    ]


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_prompt_is_the_template_with_an_open_assistants_turn(chat_tokenizer, system):
    options = PLAIN | {"template": "chat", "system": system, "prefix": "Q: ", "suffix": " Box it."}
    prompts, _ = encode(PROBLEMS, chat_tokenizer, **options)
    turn = "" if system is None else "<|im_start|>system\nBe brief.<|im_end|>\n"
    text = f"{turn}<|im_start|>user\nQ: 22+1= Box it.<|im_end|>\n<|im_start|>assistant\n"
    assert list(prompts[1].token_ids) == chat_tokenizer.encode(text, add_special_tokens=False)
    assert prompts[1].problem == "22+1="


def test_real_set_in_the_chat_template(chat_tokenizer):
    problems = load_problems(replace(SOURCE, file=str(shared("gsm8k_test.jsonl")), limit=200), data_dir=None)
    prompts, dropped = encode(problems, chat_tokenizer, **PLAIN | {"template": "chat", "max_prompt_length": 250})
    assert len(prompts) + len(dropped) == 200 and 0 < len(dropped) < 200
    assert max(len(prompt.token_ids) for prompt in prompts) <= 250
    assert {prompt.id for prompt in prompts}.isdisjoint(dropped)


def test_long_prompts_are_left_out_and_named():
    prompts, dropped = encode(PROBLEMS, build_tokenizer(), **PLAIN | {"max_prompt_length": 5})
    assert [prompt.id for prompt in prompts] == ["p1", "p22"] and dropped == ["p333"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_prompt_length": 3}, "prompts.max_prompt_length=3: all 3 prompts are longer, the shortest has 4 tokens"),
        ({"template": "chat"}, "prompts.template=chat: the student's tokenizer has no chat template"),
        ({"system": "Be brief."}, "prompts.system: a raw prompt has no system turn"),
    ],
)
def test_prompts_that_cannot_be_shown_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        encode(PROBLEMS, build_tokenizer(), **PLAIN | options)


def test_template_that_refuses_a_system_turn():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}1"
    with pytest.raises(UserError, match="chat template refuses the turns: no system here"):
        encode(PROBLEMS, tokenizer, **PLAIN | {"template": "chat", "system": "Be brief."})


def test_problem_without_a_token_is_refused(chat_tokenizer):
    with pytest.raises(UserError, match="problem 'odd': the tokenizer produces no tokens for it"):
        encode([Problem("odd", "∫", "1", "x")], chat_tokenizer, **PLAIN)


def closing(tokenizer, *, twice: bool = False):
    """A tokenizer that adds the end, or the beginning, to each text, as some families' do."""
    from tokenizers.processors import TemplateProcessing

    name, token = ("<|teacher-0|>", "<|teacher-0|>") if twice else ("<|end|>", "<|end|>")
    tokens = [(name, tokenizer.convert_tokens_to_ids(name))]
    single = f"{token} $A" if twice else f"$A {token}"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    if twice:
        tokenizer.bos_token = token
    return tokenizer


def test_a_prompt_that_its_tokenizer_closes_is_refused():
    with pytest.raises(UserError, match=r"problem 'p1': its prompt ends with '<\|end\|>', .* \(add_eos_token\)"):
        encode(PROBLEMS, closing(build_tokenizer()), **PLAIN)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}<|end|>{% endfor %}"
    with pytest.raises(UserError, match="its chat template closes the turn that the model should answer in"):
        encode(PROBLEMS, tokenizer, **PLAIN | {"template": "chat"})


def test_two_beginnings_are_refused_and_one_is_not():
    tokenizer = closing(build_tokenizer(), twice=True)
    assert encode(PROBLEMS, tokenizer, **PLAIN)[0][0].token_ids[0] == tokenizer.bos_token_id
    with pytest.raises(UserError, match=r"begins with '<\|teacher-0\|>' twice; leave it out of prompts.prefix"):
        encode(PROBLEMS, tokenizer, **PLAIN | {"prefix": "<|teacher-0|>"})


def test_characters_that_the_tokenizer_does_not_know_are_named():
    odd = [*PROBLEMS, Problem("odd", "∫1+1=", "2", "x")]
    prompts, _ = encode(odd, tokenizer := build_tokenizer(), **PLAIN)
    assert unreadable(prompts, tokenizer) == ["odd"]


@pytest.mark.parametrize(
    ("change", "seen"),
    [("Lowercase", "'x' stands for 'X'"), ("Strip", None), ("NFD", None), ("Replace", "'1+' stands for ' 1+'")],
)
def test_a_tokenizer_that_changes_texts_is_said(change, seen):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<s>", *"+=1 xXe\u0301é"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.Fuse()
    given = (" ", "") if change == "Replace" else ()
    backend.normalizer = getattr(normalizers, change)(*given)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    text = {"Lowercase": "X", "Strip": " 1+1 ", "NFD": "é=1", "Replace": "1 1+"}[change]
    said: list[str] = []
    encode([Problem("plain", "1", "1", "x"), Problem("p", text, "1", "x")], tokenizer, **PLAIN, notice=said.append)
    where = "the tokenizer changes the text of 1 of 2 prompts, .*: in the first of them, p, "
    assert [bool(re.match(f"{where}{re.escape(seen or '')}$", sentence)) for sentence in said] == [True] * bool(seen)


def test_nothing_to_show():
    assert encode([], build_tokenizer(), **PLAIN) == ([], [])


# ---- order


def test_epoch_order_is_a_fixed_permutation():
    assert epoch_order(10, seed=0, epoch=0).tolist() == epoch_order(10, seed=0, epoch=0).tolist()
    orders = {tuple(epoch_order(10, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25 and all(sorted(order) == list(range(10)) for order in orders)


def test_epoch_order_does_not_change_between_versions():
    """A resumed run must meet the prompts that it has not met."""
    assert epoch_order(8, seed=3, epoch=2).tolist() == [2, 3, 6, 4, 1, 7, 5, 0]


def test_epoch_order_is_uniform():
    """Each prompt is first equally often: chi-square over 20 cells, 4000 draws, well under its 1e-6 quantile of 65."""
    first = Counter(int(epoch_order(20, seed=seed, epoch=epoch)[0]) for seed in range(40) for epoch in range(100))
    assert sum((count - 200) ** 2 / 200 for count in first.values()) < 65


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), st.integers(1, 40))
def test_batches_pass_through_epochs_without_repeats(num_prompts, batch_size, seed, steps):
    batch_size = min(batch_size, num_prompts)
    batches = [batch_indices(num_prompts, batch_size=batch_size, step=step, seed=seed) for step in range(steps)]
    assert all(len(set(batch)) == batch_size for batch in batches)
    stream = np.concatenate(batches)
    for start in range(0, len(stream), num_prompts):
        epoch = stream[start : start + num_prompts].tolist()
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(num_prompts))


def test_a_batch_does_not_depend_on_those_before():
    later = batch_indices(13, batch_size=5, step=101, seed=1)
    for step in range(101):
        batch_indices(13, batch_size=5, step=step, seed=1)
    assert batch_indices(13, batch_size=5, step=101, seed=1) == later


def test_whole_epochs_follow_their_order():
    stream = [index for step in range(6) for index in batch_indices(12, batch_size=4, step=step, seed=7)]
    assert stream == [*epoch_order(12, seed=7, epoch=0), *epoch_order(12, seed=7, epoch=1)]


@pytest.mark.parametrize(("batch_size", "step"), [(5, 0), (0, 0), (2, -1)])
def test_impossible_batch(batch_size, step):
    with pytest.raises(ValueError):
        batch_indices(4, batch_size=batch_size, step=step, seed=0)
