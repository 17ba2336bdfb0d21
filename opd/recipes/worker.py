"""Train the model of one recipe; `opd.sft` starts one such single-threaded process per model.

Reads {"recipe", "target"} as JSON from stdin, writes JSON lines to stdout: {"step", "loss"} … {"done"} or {"error"}.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter
from torch import Tensor

from opd.config.recipe import Recipe
from opd.data import tasks
from opd.data.batch import pad
from opd.data.rows import read_jsonl
from opd.data.template import render
from opd.errors import UserError
from opd.recipes.build import build, save
from opd.recipes.make import make_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Reports per training, and the maximum seconds between two: a report fails once the parent has died.
_REPORTS, _SECONDS = 200, 2.0

# After this many draws in a row that are too long, `max_length` is refused.
_SKIPPED = 1000

# What a chat template that asks for the time gets: a recipe makes the same model on any day.
A_DAY = datetime(2024, 7, 26)


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn, with its end token."""

    prompt: list[int]
    response: list[int]


def main() -> int:
    """Train the model requested on stdin; return 1 on failure."""
    request = json.loads(sys.stdin.readline())
    sys.stdout, lines = sys.stderr, sys.stdout  # prints of libraries are not messages

    def send(message: dict[str, Any]) -> None:
        # If the parent has died, the pipe is broken and this process ends.
        print(json.dumps(message), file=lines, flush=True)

    recipe = TypeAdapter(Recipe).validate_json(json.dumps(request["recipe"]))
    try:
        make(recipe, Path(request["target"]), send)
    except UserError as error:
        send({"error": str(error)})
        return 1
    send({"done": True})
    return 0


def make(recipe: Recipe, target: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Train and write `target` atomically, unless it exists; of several processes one does so and the others wait."""

    def fill(part: Path) -> None:
        model, tokenizer = build(recipe)
        train(model, tokenizer, recipe, report)
        save(model, tokenizer, part)
        (part / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")

    make_model(target, fill)


def train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    recipe: Recipe,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Train in place by AdamW on the mean cross-entropy of the responses' tokens.

    Uses one thread and deterministic kernels, so that a recipe gives the same weights on any number of cores.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        _train(model.train(), tokenizer, recipe, report)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        model.eval()


def _train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    recipe: Recipe,
    report: Callable[[dict[str, Any]], None],
) -> None:
    pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else _end(tokenizer)
    source = examples(recipe, tokenizer)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(recipe.betas[0], recipe.betas[1]),
        fused=True,
    )
    every, reported = max(1, recipe.steps // _REPORTS), time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = response_loss(model, *collate([next(source) for _ in range(recipe.batch_size)], pad_id))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        due = step % every == every - 1 or step == recipe.steps - 1
        if due or time.monotonic() - reported > _SECONDS:
            reported = time.monotonic()
            if not math.isfinite(value := loss.item()):
                raise UserError(f"the loss is {value} at step {step + 1}; lower lr={recipe.lr} or raise warmup_steps")
            report({"step": step + 1, "loss": value})


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate at 0-based `step`: linear warm-up, then `schedule` from `lr` to `lr * final_lr`."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / (recipe.warmup_steps + 1)
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[recipe.schedule]
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * left)


def collate(examples: list[Example], pad_id: int) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """(tokens, learned): padded on the right; `learned` marks the responses."""
    tokens, _ = pad([example.prompt + example.response for example in examples], pad_id, "right")
    learned = torch.zeros_like(tokens, dtype=torch.bool)
    for row, example in enumerate(examples):
        learned[row, len(example.prompt) : len(example.prompt) + len(example.response)] = True
    return tokens, learned


def response_loss(
    model: "PreTrainedModel", tokens: Int[Tensor, "batch time"], learned: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Mean over the learned tokens of −log p(token | earlier tokens).

    Padding is on the right, which earlier positions of a causal model do not attend to: no attention mask is needed.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert decoder is not None and head is not None
    hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    logits = head(hidden[:, :-1][learned[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][learned[:, 1:]])


# ---- data


def examples(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Example]:
    """Yield examples endlessly: draws from a world, or a file's lines in a new order each epoch."""
    rng = random.Random(recipe.seed)
    eos = _end(tokenizer)
    if recipe.mix is not None:
        world = tasks.world(recipe.mix)
        made, skipped, total, (first, last) = 0, 0, recipe.steps * recipe.batch_size, recipe.slip
        for problem in tasks.stream("train", rng=rng, mix=recipe.mix):
            slip = first + (last - first) * min(1.0, made / total)
            text, trace = world.example(problem.problem, slip=slip, hints=recipe.hints, rng=rng)
            prompt = tokenizer.encode(text, add_special_tokens=False)
            response = tokenizer.encode(trace, add_special_tokens=False)
            if len(prompt) + len(response) + 1 <= recipe.max_length:
                made, skipped = made + 1, 0
                yield Example(prompt, [*response, eos])
            elif (skipped := skipped + 1) == _SKIPPED:
                raise UserError(f"max_length={recipe.max_length}: almost no example of the mix is this short; raise it")
    assert recipe.file is not None
    rows = read_examples(Path(recipe.file), tokenizer, template=recipe.template, max_length=recipe.max_length)
    while True:
        rng.shuffle(rows)
        yield from rows


def read_examples(file: Path, tokenizer: "PreTrainedTokenizerBase", *, template: str, max_length: int) -> list[Example]:
    """The usable lines of a JSONL file.

    Raises:
        UserError: for a line that is not a JSON object with texts "problem" and "response"; if none is short enough.
    """
    rows, eos = [], _end(tokenizer)
    for place, _, row in read_jsonl(file):
        texts = [row.get(key) for key in ("problem", "response")]
        if not all(isinstance(text, str) and text for text in texts):
            raise UserError(f'{place}: should be an object with texts "problem" and "response"')
        prompt = encode_prompt(tokenizer, str(texts[0]), template)
        response = [*tokenizer.encode(str(texts[1]), add_special_tokens=False), eos]
        if len(prompt) + len(response) <= max_length:
            rows.append(Example(prompt, response))
    if not rows:
        raise UserError(f"{file}: no example has at most max_length={max_length} tokens; raise it or check the file")
    return rows


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, template: str) -> list[int]:
    """`chat`: one user message and the start of an answer; `raw`: the text itself."""
    if template == "raw":
        return tokenizer.encode(text)
    [text] = render(tokenizer, [[{"role": "user", "content": text}]], key="template", date=A_DAY)
    return tokenizer.encode(text, add_special_tokens=False)


def _end(tokenizer: "PreTrainedTokenizerBase") -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError("start: its tokenizer has no end-of-text token (eos_token); choose another model")
    return tokenizer.eos_token_id


if __name__ == "__main__":
    sys.exit(main())
