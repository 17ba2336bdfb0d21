import random
from itertools import islice

import pytest

from opd.data.arithmetic import careless_solution
from opd.data.tasks import stream
from opd.recipes.tokenizer import CONTROL, EOS, PAD, UNKNOWN, build_tokenizer

MIX = {"addition": [2, 6], "subtraction": [2, 6], "multiplication": [1, 5], "chain": [3, 8]}


def test_every_trace_survives_encoding_one_token_a_character():
    tokenizer, rng = build_tokenizer(), random.Random(0)
    for problem in islice(stream("train", rng=rng, mix=MIX), 300):
        text = problem.problem + careless_solution(problem.problem, slip=0.5, rng=rng)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text) - len("#### ") + 1
        assert tokenizer.convert_tokens_to_ids(UNKNOWN) not in ids


def test_problem_and_trace_encode_apart_as_they_do_together():
    tokenizer = build_tokenizer()
    assert tokenizer.encode("47+85=") + tokenizer.encode("7+5=12#### 132") == tokenizer.encode("47+85=7+5=12#### 132")


def test_it_loads_as_any_hugging_face_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"47+85=7+5=12,4+8+1=13#### 132{CONTROL[3]}{EOS}{PAD}"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == text.partition(CONTROL[3])[0]
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == (PAD, EOS, UNKNOWN)
    assert len({loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id}) == 3
    assert len(loaded) == len(tokenizer) <= 40


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_are_single_and_special(token: str):
    tokenizer = build_tokenizer()
    assert len(tokenizer.encode(token)) == 1
    assert tokenizer.decode(tokenizer.encode(token), skip_special_tokens=True) == ""


def test_other_characters_are_unknown():
    tokenizer = build_tokenizer()
    assert tokenizer.encode("x½\n") == [tokenizer.unk_token_id] * 3
