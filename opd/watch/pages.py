"""Responses of a step as data and as an HTML page, each token coloured by its advantage."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opd.config.schema import Rollouts
from opd.data.batch import Prompt, Rollout
from opd.records.run_dir import RunDir

BINS, REACH = 160, 8.0  # of the histogram of log-ratios, from -8 to 8: bins of a tenth of a nat
STRONGEST = 80  # per cent of the colour behind a token, at which its text is legible in both modes
STYLE = """
:root { color-scheme: light dark; --page: light-dark(#f6f6f3, #111110); --surface: light-dark(#ffffff, #1a1a19);
  --ink: light-dark(#191917, #eeede9); --muted: light-dark(#62615c, #a9a8a1); --line: light-dark(#e2e1dc, #31302d);
  --up: light-dark(#5b8def, #3f6fe0); --down: light-dark(#f0952f, #c4660a) }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 3rem;
  color: var(--ink); background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem } h2 { font-size: 1rem; margin: 0 }
p { margin: 0 0 .75rem } .note { color: var(--muted); font-size: .875rem }
article { background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: .9rem 1rem; margin-top: .75rem }
article p { margin: 0 0 .4rem } .problem, .response { white-space: pre-wrap }
.response { font: .9375rem/1.9 ui-monospace, monospace; border-top: 1px solid var(--line); padding-top: .4rem }
.up, .down { color: var(--ink); padding: .12em 0; border-radius: 2px }
.up { background: color-mix(in srgb, var(--up) var(--strength), transparent) }
.down { background: color-mix(in srgb, var(--down) var(--strength), transparent) }
s { color: var(--muted) }
@media print { :root { color-scheme: light } article { break-inside: avoid } }
"""


@dataclass
class Pages:
    """Writes the first `num` responses of every `every`-th step, and calls each of `listeners` with their page."""

    folder: RunDir
    tokenizer: PreTrainedTokenizerBase
    knobs: Rollouts
    main: bool
    listeners: list[Callable[[int, str], None]] = field(default_factory=list)

    def write(
        self,
        number: int,
        prompts: Sequence[Prompt],
        rollout: Rollout,
        advantage: Float[Tensor, "batch time"],
        learned: Bool[Tensor, "batch time"],
        log_ratio: Float[Tensor, "batch time"],
    ) -> None:
        """Writes the record of step `number`, if it is due; `prompts` are those of the whole step."""
        if not self.main or not self.knobs.every or number % self.knobs.every:
            return
        data = {
            "step": number,
            "log_ratio": histogram(log_ratio[rollout.mask]),
            "responses": self.responses(prompts, rollout, advantage, learned, log_ratio),
        }
        written = page(data)
        self.folder.write_rollouts(number, data, written)
        for listener in self.listeners:
            listener(number, written)

    def responses(
        self, prompts: Sequence[Prompt], rollout: Rollout, advantage: Tensor, learned: Tensor, log_ratio: Tensor
    ) -> list[dict[str, Any]]:
        """One object per response: its prompt, and the text, advantage, log-ratio and `learned` of each token."""
        responses = []
        for row in range(min(self.knobs.num, len(rollout))):
            length, prompt = int(rollout.mask[row].sum()), prompts[int(rollout.group[row])]
            responses.append(
                {
                    "prompt_id": prompt.id,
                    "problem": prompt.problem,
                    "tokens": [str(self.tokenizer.decode([index])) for index in rollout.tokens[row, :length].tolist()],
                    "advantage": _rounded(advantage[row, :length]),
                    "log_ratio": _rounded(log_ratio[row, :length]),
                    "learned": learned[row, :length].tolist(),
                }
            )
        return responses


def histogram(log_ratio: Float[Tensor, " token"]) -> dict[str, Any]:
    """Histogram of the tokens' log(π_student / π_reference): `counts` in `BINS` equal bins from `low` to `high`, and
    the numbers of tokens `below` and `above`. NaN is not counted.
    """
    values = log_ratio.detach().double().cpu()
    counts = torch.histc(values, BINS, -REACH, REACH)  # ignores NaN and values outside
    return {
        "low": -REACH,
        "high": REACH,
        "counts": [int(count) for count in counts.tolist()],
        "below": int((values < -REACH).sum()),
        "above": int((values > REACH).sum()),
    }


def page(data: Mapping[str, Any]) -> str:
    """A step's record as HTML, one article per response. All text is escaped, and the page runs no scripts."""
    number, responses = data["step"], data["responses"]
    used = [
        [value for value, learned in zip(response["advantage"], response["learned"], strict=True) if learned]
        for response in responses
    ]
    largest = max((abs(value) for values in used for value in values if value is not None), default=0.0)
    articles = []
    for response, values in zip(responses, used, strict=True):
        known = [value for value in values if value is not None]
        tokens = zip(response["tokens"], response["advantage"], response["learned"], strict=True)
        mean = f"{math.fsum(known) / len(known):.3f}" if known else "–"
        articles.append(
            f"<article><h2>{escape(response['prompt_id'])}</h2>"
            f'<p class="note">mean advantage {mean}, {len(known)} of {len(response["tokens"])} tokens learned</p>'
            f'<p class="problem">{escape(response["problem"])}</p>'
            f'<div class="response">{"".join(token(*each, largest) for each in tokens)}</div></article>'
        )
    more, less = (
        token(word, sign * largest, True, largest) for word, sign in (("more likely", 1), ("less likely", -1))
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Rollouts of step {number}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>Rollouts of step {number}</h1>\n"
        f'<p class="note">Blue tokens become {more}, orange ones {less}; the deepest colour is an advantage of '
        f"{largest:.3g}. <s>Struck out</s>: not learned. Hover over a token for its advantage.</p>\n"
        + "\n".join(articles)
        + "\n</body></html>\n"
    )


def token(text: str, advantage: float | None, learned: bool, largest: float) -> str:
    """One token as HTML; line breaks are marked and kept."""
    html = escape(text).replace("\n", "↵\n") or "∅"
    if not learned or advantage is None:
        return f"<s>{html}</s>"
    strength = STRONGEST * abs(advantage) / largest if largest else 0.0
    sign = "up" if advantage > 0 else "down"
    return f'<span class="{sign}" style="--strength:{strength:.0f}%" title="{advantage:.4f}">{html}</span>'


def _rounded(values: Float[Tensor, " time"]) -> list[float | None]:
    """Five significant digits; null for NaN and infinity, which JSON does not have."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]
