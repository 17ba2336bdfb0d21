"""Responses of several turns, with a scripted sampler and a scripted environment; what is learned of them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from opd.data.batch import Prompt, Rollout, Sampling, pad
from opd.data.environment import Message, single_turn
from opd.data.prompts import reply_ids
from opd.errors import UserError
from opd.rollout.responses import student
from opd.rollout.turns import Turns
from tests.shared_data import shared
from tests.unit.small import ALONE

END = 9
SAMPLING = Sampling(num_samples=2, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0)
PROMPTS = [Prompt("a", "A", "", "x", (1, 2)), Prompt("b", "B", "", "x", (3,))]


class Scripted:
    """Continues by the sum of what it reads, ends the turn; notes what it was asked."""

    def __init__(self, length: int = 2, end: bool = True):
        self.asked, self.length, self.end = [], length, end

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        self.asked.append(([(each.id, each.token_ids) for each in prompts], sampling, key))
        rows = [each for each in prompts for _ in range(sampling.num_samples)]
        said = [([sum(each.token_ids) % 7] * (self.length - 1) + [END])[: sampling.max_tokens] for each in rows]
        prompt, prompt_mask = pad([list(each.token_ids) for each in rows], 0, "left")
        tokens, mask = pad(said, 0, "right")
        group = torch.arange(len(prompts)).repeat_interleave(sampling.num_samples)
        logp = torch.where(mask, -tokens.float() - 1, 0)
        truncated = torch.tensor([row[-1] != END or not self.end for row in said])
        return Rollout(prompt, prompt_mask, tokens, mask, mask, logp, group, truncated)


class Asks:
    """Asks again after each turn on A, `times` times; says nothing on B."""

    def __init__(self, times: int, max_turns: int = 5):
        self.times, self.max_turns, self.seen = times, max_turns, []

    def start(self, prompts):
        return [[{"role": "user", "content": prompt.problem}] for prompt in prompts]

    def reply(self, messages: Sequence[Message], turn: int) -> list[Message] | None:
        self.seen.append((turn, [each["content"] for each in messages]))
        return [{"role": "user", "content": "?"}] if messages[0]["content"] == "A" and turn <= self.times else None


def turns(sampler: Scripted, environment) -> Turns:
    read = lambda ids: "".join(map(str, ids))  # noqa: E731
    return Turns(sampler, environment, ALONE, read, lambda before, reply: [5, 6])


def test_one_turn_is_the_samplers_own_rollout():
    sampler = Scripted()
    for draw in (turns(sampler, single_turn()).sample, student(sampler=turns(sampler, single_turn())).draw):
        found = draw(PROMPTS, SAMPLING, key=(3,))
        plain = sampler.sample(PROMPTS, SAMPLING, key=(3,))
        assert all(torch.equal(getattr(found, name), value) for name, value in vars(plain).items())
        assert found.learned is found.mask


def test_environment_tokens_are_not_learned():
    sampler, environment = Scripted(), Asks(times=1)
    found = turns(sampler, environment).sample(PROMPTS, SAMPLING, key=(3,))
    first, again = 3 % 7, (1 + 2 + 3 + END + 5 + 6) % 7
    assert found.tokens[:2].tolist() == [[first, END, 5, 6, again, END]] * 2
    assert found.learned[:2].tolist() == [[True, True, False, False, True, True]] * 2 and found.mask[:2].all()
    assert found.rollout_logp[0].tolist() == [-first - 1, -END - 1, 0, 0, -again - 1, -END - 1]
    assert found.tokens[2, :2].tolist() == [3, END] and found.mask[2].sum() == found.learned[2].sum() == 2
    assert not found.truncated.any() and found.group.tolist() == [0, 0, 1, 1]
    # Each response goes on by itself, from its own tokens, with the tokens that are left.
    asked, sampling, key = sampler.asked[1]
    assert asked == [(f"a/{row}", (1, 2, first, END, 5, 6)) for row in (0, 1)]
    assert (sampling, key) == (replace(SAMPLING, num_samples=1, max_tokens=4), (3, 1))
    assert environment.seen[0] == (1, ["A", f"{first}{END}"])
    assert environment.seen[4] == (2, ["A", f"{first}{END}", "?", f"{again}{END}"])


def test_full_response_is_truncated_between_turns():
    sampler = Scripted()
    found = turns(sampler, Asks(times=4)).sample(PROMPTS, replace(SAMPLING, max_tokens=7), key=(3,))
    # Two turns and a reply are 6 of 7 tokens: another reply does not fit.
    assert found.mask.sum(1).tolist() == [6, 6, 2, 2] and found.truncated.tolist() == [True, True, False, False]
    assert len(sampler.asked) == 2


def test_the_last_turn_gets_no_reply():
    sampler, environment = Scripted(), Asks(times=9, max_turns=2)
    turns(sampler, environment).sample(PROMPTS, SAMPLING, key=(3,))
    assert {turn for turn, _ in environment.seen} == {1} and len(sampler.asked) == 2


def test_a_truncated_turn_is_not_answered():
    environment = Asks(times=1)
    found = turns(Scripted(end=False), environment).sample(PROMPTS, SAMPLING, key=(3,))
    assert environment.seen == [] and found.truncated.all()


BEFORE: list[Message] = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
REPLY: list[Message] = [{"role": "user", "content": "sure?"}]


def chatting(template: str):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/torchtitan-test"))
    tokenizer.chat_template = shared(f"tokenizers/trl-chat-templates/{template}.jinja").read_text()
    return tokenizer


def test_reply_tokens_match_chat_template():
    tokenizer = chatting("qwen2_5")
    text = tokenizer.apply_chat_template([*BEFORE, *REPLY], tokenize=False, add_generation_prompt=True)
    rest = text.partition("assistant\n2<|im_end|>")[2]
    assert rest.startswith("\n<|im_start|>user\nsure?") and rest.endswith("<|im_start|>assistant\n")
    wanted = tokenizer(rest, add_special_tokens=False)["input_ids"]
    assert reply_ids(BEFORE, REPLY, tokenizer, template="chat") == wanted
    plain = tokenizer("sure?", add_special_tokens=False)["input_ids"]
    assert reply_ids(BEFORE, REPLY, tokenizer, template="raw") == plain


def test_refuses_chat_template_that_rewrites_turns():
    with pytest.raises(UserError, match="the chat template rewrites earlier turns when a reply is added"):
        reply_ids(BEFORE, REPLY, chatting("qwen3"), template="chat")
