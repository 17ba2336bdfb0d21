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
STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; margin: 2em; max-width: 75em; color: #111; background: #fff }
table { border-collapse: collapse }
td, th { border: 1px solid #ccc; padding: .5em; text-align: left; vertical-align: top }
td { white-space: pre-wrap; overflow-wrap: anywhere } td:last-child { font-family: ui-monospace, monospace }
s { opacity: .5 }
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
    """A step's record as HTML, one row per response. All text is escaped, and the page runs no scripts."""
    number, responses = data["step"], data["responses"]
    used = [
        [value for value, learned in zip(response["advantage"], response["learned"], strict=True) if learned]
        for response in responses
    ]
    largest = max((abs(value) for values in used for value in values if value is not None), default=0.0)
    rows = []
    for response, values in zip(responses, used, strict=True):
        known = [value for value in values if value is not None]
        tokens = zip(response["tokens"], response["advantage"], response["learned"], strict=True)
        cells = (
            f"{escape(response['prompt_id'])}\n{escape(response['problem'])}",
            f"{math.fsum(known) / len(known) if known else math.nan:.3f}",
            "".join(token(*each, largest) for each in tokens),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>prompt</th><th>mean advantage</th><th>response</th></tr>"
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Rollouts of step {number}</title><style>{STYLE}</style>\n<h1>Rollouts of step {number}</h1>\n"
        "<p>Green: the token becomes more likely; red: less likely; the deepest colour is an advantage of "
        f"{largest:.3g}. Struck out: not learned. Hover over a token for its advantage.</p>\n"
        f"<table>\n{head}\n" + "\n".join(rows) + "\n</table></html>\n"
    )


def token(text: str, advantage: float | None, learned: bool, largest: float) -> str:
    """One token as HTML; line breaks are marked and kept."""
    html = escape(text).replace("\n", "↵\n") or "∅"
    if not learned or advantage is None:
        return f"<s>{html}</s>"
    strength = abs(advantage) / largest if largest else 0.0
    colour = "0,140,60" if advantage > 0 else "210,30,30"
    return f'<span style="background:rgba({colour},{0.75 * strength:.2f})" title="{advantage:.4f}">{html}</span>'


def _rounded(values: Float[Tensor, " time"]) -> list[float | None]:
    """Five significant digits; null for NaN and infinity, which JSON does not have."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]
