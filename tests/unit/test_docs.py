"""The pages that are made from the code say what the code says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from docs import credit_variance, each_method, formulas, keys, tables
from docs.families import page as families, small
from opd.config.described import DESCRIBED
from opd.config.identity import is_hashed
from opd.config.schema import Compute, Memory
from tests.blocks import LANGUAGES, ROOT, blocks, pages
from tests.unit.objective import test_shaping


@pytest.mark.parametrize("page", ["methods", "refusals"])
def test_the_committed_page_is_what_the_code_gives(page: str):
    made, committed = getattr(tables, page)(), (tables.DOCS / f"{page}.md").read_text()
    assert committed == made, f"docs/{page}.md is out of date: run make docs"


def test_the_page_of_families_is_what_the_record_says_and_names_every_family():
    committed = families.PAGE.read_text()
    assert committed == families.page(json.loads(families.RECORD.read_text())), "run python -m docs.families"
    assert not [family for family in small.FAMILIES if f"| `{family}` |" not in committed], (
        "run python -m docs.families"
    )


def test_every_key_is_described_in_a_sentence_and_on_its_page():
    assert {key for key, _ in keys.every_key()} == DESCRIBED.keys()
    assert all(sentence[0].isupper() or sentence[0] in "\"'" for sentence in DESCRIBED.values())
    assert all(sentence.endswith(".") for sentence in DESCRIBED.values())
    assert (keys.DOCS / "keys.md").read_text() == keys.page(), "docs/keys.md is out of date: run make docs"


def test_every_knob_of_shaping_is_in_the_tables():
    assert not tables.missing_knobs()


def test_every_experiment_is_in_the_tables_or_changes_no_method():
    """Lengths, epochs, teachers, temperatures, learning rates and numbers of samples are no method."""
    page = tables.methods()
    unnamed = {name for name in tables.experiments() if f"`{name}`" not in page}
    assert unnamed == {
        *("half_length", "double_length", "two_epochs", "prompts_reused", "one_sample", "eight_samples"),
        *("teacher_smallest", "teacher_second", "teacher_third", "teacher_largest", "self_teacher"),
        *("half_lr", "double_lr", "half_data"),
        *("temperature_0_1", "temperature_0_5", "temperature_1_2"),
        *("mis",),
    }


def test_every_knob_of_memory_and_precision_is_said_to_be_one_of_both():
    table = (tables.DOCS / "speed.md").read_text().partition("| knob | kind |")[2].partition("\n\n")[0]
    kinds = {key: row.split("|")[2].strip() for row in table.splitlines()[2:] for key in re.findall(r"`(.+?)`", row)}
    knobs = {f"memory.{each.name}" for each in fields(Memory)} | {f"compute.{each.name}" for each in fields(Compute)}
    assert knobs - {"compute.rank_timeout"} <= kinds.keys()
    assert {key for key, kind in kinds.items() if key.endswith("dtype")} == {
        "compute.dtype",
        "teacher.dtype",
        "rollout.dtype",
    }
    # A knob that rounds makes another run.
    assert all(is_hashed(key) for key, kind in kinds.items() if kind == "precision")
    assert set(kinds.values()) == {"exact", "precision"}


def test_a_cell_cannot_break_its_table():
    assert tables.table(("a", "b"), [("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |\n"


def test_the_committed_variances_are_what_enumeration_gives():
    page = (credit_variance.DOCS / "credit.md").read_text()
    for length in (1, 2, 6):
        row = credit_variance.variances(length)
        assert f"| {length} | {row['token (gamma 0)']:.3g} | " in page
        assert f" | {row['sequence']:.3g} ({row['sequence'] / row['token (gamma 0)']:.1f}) |" in page


def test_the_variances_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch):
    """The page's closed form against the gradients of every response, for one student and teacher."""
    generator, tables_of = torch.Generator().manual_seed(3), {"student": [], "teacher": []}
    for t in range(4):
        for table, drawn in zip(
            tables_of.values(), torch.randn(2, 3**t, 3, generator=generator, dtype=torch.float64), strict=True
        ):
            table.append(drawn)
    found = credit_variance.variances_of(4, seed=3)
    monkeypatch.setattr(
        test_shaping, "tabular", lambda _, seed: [t.clone() for t in tables_of["teacher" if seed else "student"]]
    )
    for ours, theirs in zip(found, ("token", "reward_to_go", "sequence"), strict=True):
        assert found[ours] == pytest.approx(test_shaping.estimator(test_shaping.CREDITS[theirs], 4)[1])


def test_the_committed_sections_and_pictures_are_what_the_code_gives():
    assert (tables.DOCS / "each-method.md").read_text() == each_method.page(), "out of date: run make docs"
    for name, picture in each_method.pictures().items():
        assert (tables.DOCS / "images" / name).read_text() == picture, (
            f"docs/images/{name} is out of date: run make docs"
        )


def evaluated(tex: str, **known: float) -> float:
    """A formula of the page, read as TeX by sympy, at some numbers; `m` is what the formula says after its comma."""
    from latex2sympy2_extended import latex2sympy

    formula, *where = re.split(r", \\quad m = ", tex)
    if where:
        known |= {"m": evaluated(where[0], **known)}
    read = latex2sympy(formula.replace(r"\log", r"\ln"))  # it takes log for the decimal one
    return float(read.subs({symbol: known[str(symbol).lstrip("\\")] for symbol in read.free_symbols}))


def known_m(generator: str, ratio: float, knobs: dict[str, float]) -> dict[str, float]:
    """The weight's formula may use the `m` that the generator's has defined."""
    defined = generator.partition(r", \quad m = ")[2]
    return {"r": ratio, **knobs} | ({"m": evaluated(defined, r=ratio, **knobs)} if defined else {})


@pytest.mark.parametrize("choice", sorted(formulas.DIVERGENCES))
def test_a_formula_of_the_page_is_what_the_code_computes(choice: str):
    generator, weight = formulas.DIVERGENCES[choice]
    function, knobs = next(
        (function, knobs) for name, function, knobs in tables.choices("divergence") if name == choice
    )
    for ratio in (0.07, 0.6, 1.9, 11.0):
        log_ratio = torch.tensor(ratio, dtype=torch.float64).log()
        built = function(**knobs)
        said = evaluated(generator, r=ratio, **knobs), evaluated(weight, **known_m(generator, ratio, knobs))
        assert (float(built.generator(log_ratio)), float(built.advantage(log_ratio))) == pytest.approx(said, rel=1e-9)


def test_every_divergence_of_one_formula_has_it_on_the_page():
    """The others are made of two, or take another's value."""
    assert {name for name, *_ in tables.choices("divergence")} - formulas.DIVERGENCES.keys() == {
        *("split", "entropy_aware", "value_weighted")
    }


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_fence_says_its_language_and_every_link_leads_somewhere(page: Path):
    assert not [block.line for block in blocks(page) if block.language not in LANGUAGES]
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if not target.startswith(("https://", "mailto:")):
            found = (page.parent / file).resolve() if file else page
            assert found.exists(), f"{page.name}: {target} leads nowhere"
            assert not anchor or anchor in anchors(found), f"{page.name}: {target} names no heading"


def anchors(page: Path) -> set[str]:
    """The headings of a page as both GitHub and the site name them, so far as the two agree."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None and not os.environ.get("CI"), reason="needs the docs extra (mkdocs)"
)
def test_the_site_builds_strictly_and_asks_the_network_for_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "true"}, capture_output=True)
    assert built.returncode == 0, built.stderr.decode()
    for page in tmp_path.rglob("*.html"):
        assert not re.search(r"<(script|link|img|iframe)[^>]*https?://", page.read_text()), page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name
    methods = (tmp_path / "each-method.html").read_text()
    assert "<mfrac>" in methods and "arithmatex" not in methods


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None and not os.environ.get("CI"), reason="needs the docs extra (mkdocs)"
)
def test_a_made_file_that_a_page_names_is_a_link_in_the_site_where_it_is_there():
    from mkdocs.structure.files import File, Files

    from docs.made_links import on_page_content

    files = Files([File(name, str(ROOT), "site", use_directory_urls=False) for name in ("a.md", "results/a/b.html")])
    page = SimpleNamespace(file=files.get_file_from_path("a.md"))
    given = "<code>results/a/b.html</code> <code>results/a/c.html</code>"
    linked = '<a href="results/a/b.html"><code>results/a/b.html</code></a> <code>results/a/c.html</code>'
    assert on_page_content(given, page=page, files=files) == linked
