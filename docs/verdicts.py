"""`python -m docs.verdicts` writes the table of results.md: every claim that ran, in each world, from their exports."""

from pathlib import Path

from analysis.claims import Verdict, verdicts
from analysis.contrasts import Bootstrap
from analysis.results import analyse
from analysis.studies import read_studies
from analysis.text import markdown

DOCS = Path(__file__).parent
# World → the exports that judge its claims. A claim is judged by the first that has its runs.
WORLDS = {"tiny": ("tiny",), "small": ("small", "small_int4")}
START, END = "<!-- made by python -m docs.verdicts -->\n\n", "\n<!-- end -->"
_ORDER = ("reproduced", "contradicted", "not settled", "cannot show here", "built in", "report only", "not run")


def main() -> None:
    """Writes the table into the page."""
    page = (DOCS / "results.md").read_text()
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    (DOCS / "results.md").write_text(before + START + table() + END + after)


def table() -> str:
    """Markdown: a row a claim that ran in any world, those that hold first."""
    found = {world: of_world(exports) for world, exports in WORLDS.items()}
    head = ["claim", "published", *(cell for world in WORLDS for cell in (f"{world}, points", world))]
    align = ["---", "---", *["---:", "---"] * len(WORLDS)]
    claims = [one.claim for one in next(iter(found.values())).values()]
    ran = [claim for claim in claims if any(own[claim.id].verdict != "not run" for own in found.values())]
    ran.sort(key=lambda claim: min(_ORDER.index(own[claim.id].verdict) for own in found.values()))
    rows = [
        [
            *map(markdown, (claim.says, claim.published)),
            *(part for own in found.values() for part in cells(own[claim.id])),
        ]
        for claim in ran
    ]
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, align, *rows))


def of_world(exports: tuple[str, ...]) -> dict[str, Verdict]:
    """Claim → its verdict in the first of the exports that has its runs."""
    found: dict[str, Verdict] = {}
    for name in exports:
        records = read_studies(DOCS / "results" / name)
        for one in verdicts(analyse(records, baseline="mis", bootstrap=Bootstrap(count=100, seed=0))):
            if one.claim.id not in found or found[one.claim.id].verdict == "not run":
                found[one.claim.id] = one
    return found


def cells(one: Verdict) -> tuple[str, str]:
    """The difference with its interval, and the verdict, with the number of seeds that would settle it."""
    word = f"**{one.verdict}**" if one.verdict in ("reproduced", "contradicted") else one.verdict
    seeds = f" ({one.seeds_needed} seeds would)" if one.seeds_needed else ""
    if one.value is None or one.low is None or one.high is None:
        return "–", word
    value, low, high = (f"{round(number, 1) + 0.0:+.1f}".replace("-", "−") for number in (one.value, one.low, one.high))
    return f"{value} [{low}, {high}]", word + seeds


if __name__ == "__main__":
    main()
