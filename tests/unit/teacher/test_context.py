"""What the teacher reads: the student's prompt, or what a scripted context puts there; and each token's place in it."""

from collections.abc import Sequence

import torch

from opd.data.batch import Prompt, Rollout, pad
from opd.recipes.tokenizer import build_tokenizer
from opd.teacher.alignment import identity
from opd.teacher.context import Context, Grades, View, after, same
from opd.teacher.local import sequences
from tests.unit.small import rollout_of

PROMPTS = [Prompt("a", "A", "", "x", (2, 3)), Prompt("b", "B", "", "x", (4,))]


class Hinted(Context):
    """Shows the teacher the grade of a response before the prompt."""

    def view(self, prompts: Sequence[Prompt], rollout: Rollout, grades: Grades) -> list[View]:
        rows = [[11 if grade else 10, *prompts[g].token_ids] for grade, g in zip(grades(), rollout.group, strict=True)]
        prompt, prompt_mask = pad(rows, 0, "left")
        return [View(prompt, prompt_mask, after(prompt_mask, rollout.mask))]


def responses() -> Rollout:
    return rollout_of([[2, 3], [4]], [[5, 6, 7], [8]])


def asked_for() -> Sequence:
    raise AssertionError("nothing asks for grades")


def test_same_context():
    rollout = responses()
    (view,) = same().view(PROMPTS, rollout, asked_for)
    assert sequences(view.of(rollout)) == sequences(rollout)
    assert view.prompt is rollout.prompt and view.prompt_mask is rollout.prompt_mask


def test_places_of_response_tokens():
    rollout = responses()
    for context in (same(), Hinted()):
        (view,) = context.view(PROMPTS, rollout, lambda: [True, False])  # pyright: ignore[reportArgumentType]
        for row, sequence in enumerate(sequences(view.of(rollout))):
            own = rollout.mask[row]
            assert [sequence[place] for place in view.place[row][own]] == rollout.tokens[row][own].tolist()
            assert not view.place[row][~own].any()


def test_context_with_teacher_only_prompt():
    rollout = responses()
    (view,) = Hinted().view(PROMPTS, rollout, lambda: [True, False])  # pyright: ignore[reportArgumentType]
    assert sequences(view.of(rollout)) == [[11, 2, 3, 5, 6, 7], [10, 4, 8]]
    assert torch.equal(view.of(rollout).tokens, rollout.tokens)


def test_identity_alignment():
    align = identity()
    spans = align([7, 8, 9], build_tokenizer(), build_tokenizer())
    assert align.same_vocabulary and spans.student == spans.teacher == (0, 1, 2, 3) and spans.aligned == (True,) * 3
