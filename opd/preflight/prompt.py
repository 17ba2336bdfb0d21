"""The first of a run's prompts, as the student reads it and as the teachers do."""

from collections.abc import Sequence
from functools import cache

import torch

from opd.data.batch import Prompt, Rollout, pad
from opd.preflight.report import Report
from opd.step.benchmarks import grade_rollout
from opd.step.run import Run


def show_prompt(run: Run, report: Report) -> None:
    """Reports it: its tokens as text, special ones too."""
    prompt = run.prompts[0]
    student, teachers = list(run.control.for_student([prompt], [0])[0].token_ids), _of_teachers(run, prompt)
    readers = "student and teachers read" if student == teachers else "the student reads"
    report.prompt(f"the first prompt, {prompt.id}, as {readers} it", len(student), _text(run, student))
    if student != teachers:
        report.prompt("the same, as the teachers read it", len(teachers), _text(run, teachers))


def _of_teachers(run: Run, prompt: Prompt) -> list[int]:
    rollout = _with_end(run.control.for_student([prompt], [0])[0], prompt.token_ids[-1])
    seen = run.control.for_teachers(rollout, [prompt])
    timeout = run.config.evaluate.grading_timeout
    grades = cache(lambda: grade_rollout(rollout, [prompt], run.tokenizer, timeout=timeout))
    view = run.context.view([prompt], seen, grades)[0]
    return view.prompt[0][view.prompt_mask[0]].tolist()


def _with_end(prompt: Prompt, end: int) -> Rollout:
    """The prompt with a response that is at its end at once: a context is asked with responses."""
    ids, mask = pad([list(prompt.token_ids)], 0, "left")
    one = torch.ones(1, 1, dtype=torch.bool)
    return Rollout(
        prompt=ids,
        prompt_mask=mask,
        tokens=torch.full((1, 1), end),
        mask=one,
        learned=one,
        rollout_logp=torch.zeros(1, 1),
        group=torch.zeros(1, dtype=torch.long),
        truncated=torch.zeros(1, dtype=torch.bool),
    )


def _text(run: Run, ids: Sequence[int]) -> str:
    decoded = run.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(decoded)
