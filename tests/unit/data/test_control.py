import pytest
import torch

from opd.data.batch import Prompt, Rollout, pad
from opd.data.control import Control, encode
from opd.errors import UserError
from opd.objective.ensemble import arithmetic, control_token
from opd.objective.mixture import BoundEnsemble, Prefixes
from opd.recipes.tokenizer import build_tokenizer

PROMPTS = [Prompt("a", "1+1=", "2", "addition", (7, 8, 9)), Prompt("b", "2+2=", "4", "addition", (5,))]
CONTROL = Control(tokens=((3,), (4, 4)), teacher_sees=False, at_evaluation=(4, 4))
NOTHING = Control(tokens=((), ()), teacher_sees=True, at_evaluation=())


def rollout_of(prompts, samples: int) -> Rollout:
    """What a sampler gives of these prompts, each token its row and time."""
    prompt, prompt_mask = pad([list(each.token_ids) for each in prompts for _ in range(samples)], 0, "left")
    tokens = torch.arange(len(prompt) * 3).reshape(-1, 3)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    group = torch.arange(len(prompts)).repeat_interleave(samples)
    return Rollout(prompt, prompt_mask, tokens, mask, mask, torch.rand(tokens.shape), group, ~mask.any(1))


def rows(rollout: Rollout) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollout.prompt, rollout.prompt_mask, strict=True)]


def test_each_prompt_is_shown_after_the_token_of_its_teacher():
    shown = CONTROL.for_student(PROMPTS, (1, 0))
    assert [prompt.token_ids for prompt in shown] == [(4, 4, 7, 8, 9), (3, 5)]
    assert [(prompt.id, prompt.problem, prompt.answer) for prompt in shown] == [("a", "1+1=", "2"), ("b", "2+2=", "4")]
    assert [prompt.token_ids for prompt in PROMPTS] == [(7, 8, 9), (5,)]


def test_prompts_are_shown_as_they_are_where_none_is_routed_or_no_teacher_has_a_token():
    assert CONTROL.for_student(PROMPTS, None) is PROMPTS
    assert NOTHING.for_student(PROMPTS, (1, 0)) is PROMPTS


def test_a_teacher_without_a_token_leaves_its_prompts_alone():
    shown = Control(((), (4,)), False, ()).for_student(PROMPTS, (0, 1))
    assert [prompt.token_ids for prompt in shown] == [(7, 8, 9), (4, 5)]


def test_problems_are_examined_after_the_token_of_evaluation():
    assert [prompt.token_ids for prompt in CONTROL.for_evaluation(PROMPTS)] == [(4, 4, 7, 8, 9), (4, 4, 5)]
    assert NOTHING.for_evaluation(PROMPTS) == PROMPTS


@pytest.mark.parametrize("samples", [1, 3])
def test_teachers_are_asked_of_the_same_responses_without_the_token(samples: int):
    seen = rollout_of(CONTROL.for_student(PROMPTS, (1, 0)), samples)
    asked = CONTROL.for_teachers(seen, PROMPTS)
    assert rows(seen) == [[4, 4, 7, 8, 9]] * samples + [[3, 5]] * samples
    assert rows(asked) == [[7, 8, 9]] * samples + [[5]] * samples
    for name in ("tokens", "mask", "rollout_logp", "group", "truncated"):
        assert torch.equal(getattr(asked, name), getattr(seen, name))


def test_rows_keep_their_own_prompt_where_only_some_of_a_step_are_asked_of():
    seen = rollout_of(CONTROL.for_student(PROMPTS, (1, 0)), 2).rows(slice(1, 4))
    assert rows(CONTROL.for_teachers(seen, PROMPTS)) == [[7, 8, 9], [5], [5]]


def test_teachers_see_the_token_where_told_so_and_where_there_is_none():
    seen = rollout_of(CONTROL.for_student(PROMPTS, (1, 0)), 2)
    assert Control(CONTROL.tokens, True, ()).for_teachers(seen, PROMPTS) is seen
    plain = rollout_of(PROMPTS, 2)
    assert Control(((), ()), False, ()).for_teachers(plain, PROMPTS) is plain


def test_the_longest_counts_tokens():
    assert CONTROL.longest == 2 and NOTHING.longest == 0


def test_control_tokens_of_the_tiny_world_are_one_token_each_and_none_is_written_by_a_solver():
    tokenizer = build_tokenizer()
    knobs = {"token": "<|teacher-{}|>", "teacher_sees_token": False, "evaluate_with": "last"}
    found = encode(BoundEnsemble(control_token, 3, knobs).prefixes(), tokenizer)
    assert [len(ids) for ids in found.tokens] == [1, 1, 1] and len({ids[0] for ids in found.tokens}) == 3
    assert found.at_evaluation == found.tokens[2] and not found.teacher_sees
    assert set(tokenizer("0123456789+-*=,;() #### ")["input_ids"]).isdisjoint(ids[0] for ids in found.tokens)


def test_evaluation_may_go_without_a_token_and_teachers_may_see_it():
    knobs = {"token": "<|teacher-{}|>", "teacher_sees_token": True, "evaluate_with": "none"}
    found = encode(BoundEnsemble(control_token, 2, knobs).prefixes(), build_tokenizer())
    assert found.at_evaluation == () and found.teacher_sees and found.longest == 1


def test_any_text_that_the_tokenizer_knows_will_do():
    found = encode(Prefixes(("1=", "22="), True, "1="), build_tokenizer())
    assert [len(ids) for ids in found.tokens] == [2, 3] and found.at_evaluation == found.tokens[0]


def test_other_ensembles_put_nothing_before_a_prompt():
    prefixes = BoundEnsemble(arithmetic, 3, {"weights": None}).prefixes()
    assert encode(prefixes, build_tokenizer()) == Control(((), (), ()), teacher_sees=True, at_evaluation=())


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (("<|teacher-1|>", "<|teacher-1|>"), "'<|teacher-1|>'"),  # two alike
        (("1", "[teacher]"), "'[teacher]'"),  # unknown characters
        (("<|teacher-7|>", "<|teacher-8|>"), "'<|teacher-8|>'"),  # one more than there are
    ],
)
def test_texts_that_the_tokenizer_cannot_tell_apart_are_refused(texts: tuple[str, str], named: str):
    with pytest.raises(UserError) as refused:
        encode(Prefixes(texts, True, ""), build_tokenizer())
    said = str(refused.value)
    assert (
        said.startswith("ensemble.token: ")
        and f"does not distinguish {named} from other text" in said
        and "\n" not in said
    )


def test_texts_that_become_no_tokens_are_refused():
    class Deaf:
        unk_token_id = None

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(UserError, match=r"ensemble\.token: .* '0' from other text"):
        encode(Prefixes(("0", "1"), True, ""), Deaf())  # pyright: ignore[reportArgumentType]
