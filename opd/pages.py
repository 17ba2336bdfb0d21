"""Responses of a step as a page: each token coloured by its advantage, struck out where it was not learned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opd.batch import Prompt, Rollout
from opd.config import Rollouts
from opd.records import RunDir

STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; margin: 2em; max-width: 75em; color: #111; background: #fff }
table { border-collapse: collapse }
td, th { border: 1px solid #ccc; padding: .5em; text-align: left; vertical-align: top }
td { white-space: pre-wrap; overflow-wrap: anywhere } td:last-child { font-family: ui-monospace, monospace }
s { opacity: .5 }
"""


@dataclass
class Pages:
    """Writes a page of the first `num` responses of every `every`-th step; each of `listeners` is given it too."""

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
    ) -> None:
        """The page of step `number`, if it has one; `prompts` are those of the whole step."""
        if not self.main or not self.knobs.every or number % self.knobs.every:
            return
        page = self.page(number, prompts, rollout, advantage, learned)
        self.folder.write_rollouts(number, page)
        for listener in self.listeners:
            listener(number, page)

    def page(self, number: int, prompts: Sequence[Prompt], rollout: Rollout, advantage: Tensor, learned: Tensor) -> str:
        """One row a response: its prompt, mean advantage and tokens. Nothing in it is taken as HTML, nor run."""
        rows, shown = [], slice(0, self.knobs.num)
        used = learned & rollout.mask
        values = advantage[shown][used[shown]]
        most = float(values.abs().max()) if len(values) else 0.0
        for row in range(min(self.knobs.num, len(rollout))):
            length = int(rollout.mask[row].sum())
            tokens = zip(
                self._texts(rollout.tokens[row, :length]),
                advantage[row, :length].tolist(),
                used[row, :length].tolist(),
                strict=True,
            )
            mean = float(advantage[row][used[row]].double().mean()) if used[row].any() else float("nan")
            prompt = prompts[int(rollout.group[row])]
            cells = (
                f"{escape(prompt.id)}\n{escape(prompt.problem)}",
                f"{mean:.3f}",
                "".join(token(*each, most) for each in tokens),
            )
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        head = "<tr><th>prompt</th><th>mean advantage</th><th>response</th></tr>"
        return (
            '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<title>Rollouts of step {number}</title><style>{STYLE}</style>\n<h1>Rollouts of step {number}</h1>\n"
            "<p>Green: the token is made likelier; red: less likely; the deepest colour is an advantage of "
            f"{most:.3g}. Struck out: not learned. Point at a token for its number.</p>\n"
            f"<table>\n{head}\n" + "\n".join(rows) + "\n</table></html>\n"
        )

    def _texts(self, tokens: Tensor) -> list[str]:
        return [str(self.tokenizer.decode([index])) for index in tokens.tolist()]


def token(text: str, advantage: float, learned: bool, most: float) -> str:
    """One token; line breaks are shown as such and kept."""
    shown = escape(text).replace("\n", "↵\n") or "∅"
    if not learned:
        return f"<s>{shown}</s>"
    strength = abs(advantage) / most if most else 0.0
    colour = "0,140,60" if advantage > 0 else "210,30,30"
    return f'<span style="background:rgba({colour},{0.75 * strength:.2f})" title="{advantage:.4f}">{shown}</span>'
