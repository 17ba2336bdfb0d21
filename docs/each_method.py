"""`python -m docs.each_method` writes each-method.md: a section a method, from its function, its file and its curve."""

import inspect
import json
from collections.abc import Callable
from typing import Any

from docs import curves, formulas
from docs.tables import DOCS, GROUPS, OTHER_NAMES, choices, formula_and_source, users

INTRODUCTION = """\
# The methods one by one

Made by `make docs` from the config files and the functions that they name. The pictures are drawn by calling these.

In a picture of a divergence the height is the weight $A$ that the policy gradient gives a token, over the ratio
$r = \\pi_\\theta / \\pi_T$ of student to reference: above 0 the token is made likelier, below 0 less likely. Grey is
reverse KL. In a picture of a rollout correction it is what the token's loss is multiplied by, over
$\\rho = \\pi_\\theta / \\pi_\\text{rollout}$.
"""


def main() -> None:
    """Writes the page and its pictures."""
    (DOCS / "each-method.md").write_text(page())
    for name, picture in pictures().items():
        (DOCS / "images" / name).write_text(picture)


def page() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        parts += [section(group, choice, function, knobs) for choice, function, knobs in choices(group)]
    return "\n".join(parts)


def section(group: str, choice: str, function: Callable[..., Any], knobs: dict[str, Any]) -> str:
    """A heading, what it computes, its picture, its knobs and who uses it."""
    said, source = formula_and_source(function, choice, knobs)
    lines = [f"### `{group}={choice}`", said]
    if group == "divergence" and choice in formulas.DIVERGENCES:
        generator, weight = formulas.DIVERGENCES[choice]
        lines += [f"$$f(r) = {generator}$$", f"$$A(r) = {weight}$$"]
    elif (group, choice) in formulas.OTHERS:
        lines.append(f"$${formulas.OTHERS[group, choice]}$$")
    if drawn(group, choice):
        lines.append(f"![Weight of a token by {choice}](images/{picture_name(group, choice)})")
    lines += rest(function)
    if knobs:
        lines.append("Knobs: " + ", ".join(f"`{group}.{key}={value(knob)}`" for key, knob in knobs.items()) + ".")
    if source != "—":
        lines.append(f"Source: {source}.")
    if (used := users(group, choice)) != "—":
        lines.append(f"Experiments: {used}.")
    return "\n\n".join(lines) + "\n"


def rest(function: Callable[..., Any]) -> list[str]:
    """The docstring's paragraphs after the first; tables of a knob's values, and errors, are left to the code."""
    found = []
    for paragraph in (inspect.getdoc(function) or "").split("\n\n")[1:]:
        if "  " in paragraph or paragraph.startswith("Raises:"):
            continue
        for old, new in OTHER_NAMES.items():
            paragraph = paragraph.replace(old, new)
        found.append(paragraph.replace("|", "\\|"))
    return found


def value(knob: Any) -> str:
    """As it would be typed."""
    if isinstance(knob, dict):
        return knob["_target_"].rpartition(".")[2]
    return json.dumps(knob).strip('"')


def drawn(group: str, choice: str) -> bool:
    """Whether a method has a weight curve."""
    return group == "divergence" or (group == "rollout_correction" and choice != "none")


def picture_name(group: str, choice: str) -> str:
    """Its file under images/."""
    return f"{group}_{choice}.svg"


def pictures() -> dict[str, str]:
    """File name → SVG, of every method that has a weight curve."""
    draw = {"divergence": curves.of_divergence, "rollout_correction": curves.of_correction}
    return {
        picture_name(group, choice): draw[group](choice, function, knobs)
        for group in draw
        for choice, function, knobs in choices(group)
        if drawn(group, choice)
    }


if __name__ == "__main__":
    main()
