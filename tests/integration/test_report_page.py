"""The report's page in a real headless Chromium. Skips where there is none, fails where `CI` is set."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.published_tables import VERDICTS
from analysis.report import main
from opd.watch import pages
from tests.unit.analysis.fake_runs import HOSTILE, Fake, write_broken, write_demo, write_run
from tests.unit.analysis.published_runs import rollouts, write_published

pytestmark = pytest.mark.apart

# The elements with text of their own, outside figures, that is below 4.5:1 against what is behind it or under 12 px.
POOR_TEXT = """() => {
  const rgb = text => {
    const parts = text.match(/[\\d.]+(?:e[-+]\\d+)?/g).map(Number);
    return text.startsWith("color(") ? [...parts.slice(0, 3).map(part => 255 * part), ...parts.slice(3)] : parts;
  };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = element => {
    const layers = [];
    for (; element && layers.at(-1)?.[3] !== 1; element = element.parentElement) {
      const [red, green, blue, alpha = 1] = rgb(getComputedStyle(element).backgroundColor);
      layers.push([red, green, blue, alpha]);
    }
    const over = (below, [...above]) => below.map((part, at) => part + above[3] * (above[at] - part));
    return layers.reverse().reduce(over, [255, 255, 255]);
  };
  const written = element => element.checkVisibility() && !element.closest(".plot, script, option") &&
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("body *")].filter(written).filter(element => {
    const style = getComputedStyle(element);
    const [low, high] = [light(rgb(style.color)), light(behind(element))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05) < 4.5 || parseFloat(style.fontSize) < 12;
  }).map(element => element.outerHTML.slice(0, 100));
}"""
FIGURES = ["learning-mean", "learning-best", "difference-mean", "difference-best", "grad-norm"]


@dataclass
class Opened:
    """A page and what went wrong in it."""

    page: Any
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def open_report(browser) -> Iterator:
    """Opens a report from disk and, after the test, wants no error, no warning and no request to have happened."""
    opened: list[Opened] = []

    def open_(report: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        found = Opened(page)
        opened.append(found)
        page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (found.complaints.append("dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:"))
                or found.complaints.append(f"request: {request.url}")
            ),
        )
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready=true]")
        return page

    yield open_
    for found in opened:
        assert found.complaints == []
        found.page.close()


def write(root: Path, *more: str) -> Path:
    out = root.parent / f"{root.name}-report"
    assert main([f"runs={root}", f"out={out}", "bootstrap=200", "figures=false", "cache=false", *more]) == 0
    return root.parent / f"{root.name}-report" / "report.html"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reports") / "demo"
    write_demo(root)
    return write(root)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reports") / "hostile"
    write_demo(root)
    write_broken(root)
    run = write_run(root, Fake("rollouts", num_steps=4, every=2, benchmarks={"arithmetic": 60}))
    run.write_rollouts(4, rollouts(np.random.default_rng(0), HOSTILE), "")
    return write(root)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reports") / "published"
    write_published(root)
    return write(root, "baseline=mis")


def draw_all(page) -> None:
    """Figures are drawn when they come near: go past all of them."""
    for place in page.locator(".plot").all():
        place.scroll_into_view_if_needed()
        page.locator(f"#{place.get_attribute('id')}:not([data-stale]) .main-svg").first.wait_for()


def drawn(page, figure: str) -> list[str]:
    """The names of the traces that plotly has drawn in a figure, which is drawn when it is seen."""
    page.locator(f"#{figure}").scroll_into_view_if_needed()
    page.locator(f"#{figure}:not([data-stale])").wait_for()
    return page.evaluate("id => document.getElementById(id)._fullData.map(trace => trace.name)", figure)


def chip(page, label: str):
    return page.locator(".chip", has_text=re.compile(f"^{label}"))


def test_every_figure_is_drawn(open_report, demo):
    page = open_report(demo)
    draw_all(page)
    for figure in FIGURES:
        assert page.locator(f"#{figure} .trace").count() > 0, figure
    students = {"default", "hard_switch", "kl_70_100", "low_lr", "naive", "tis"}
    assert set(drawn(page, "learning-mean")) == students | {"teacher-large", "teacher-medium", "teacher-small"}
    assert "teacher-large 9" in (page.locator("#learning-mean").text_content() or "")


def test_chosen_runs_are_shown_in_all_figures_and_in_the_examples(open_report, demo):
    page = open_report(demo)
    draw_all(page)
    assert page.locator("#status").inner_text() == "9 of 9 runs shown"
    chip(page, "tis").click()
    assert chip(page, "tis").get_attribute("aria-pressed") == "false"
    for figure in FIGURES:
        assert "tis" not in drawn(page, figure) and "hard_switch" in drawn(page, figure)
    answers = page.locator("#table-answers tbody tr")
    shown = {row.locator("th").inner_text() for row in answers.all() if row.is_visible()}
    assert "tis" not in shown and "default" in shown
    page.locator("#none").click()
    assert page.locator("#status").inner_text() == "0 of 9 runs shown"
    assert all(drawn(page, figure) == [] for figure in FIGURES)
    chip(page, "tis").focus()
    page.keyboard.press("Space")
    assert set(drawn(page, "learning-mean")) == {"tis"}
    page.locator("#all").click()
    assert len(set(drawn(page, "learning-mean"))) == 9


def test_smoothing_changes_the_curve(open_report, demo):
    page = open_report(demo)
    page.locator("#learning-mean").scroll_into_view_if_needed()
    page.locator("#learning-mean:not([data-stale])").wait_for()
    curve = "() => [...document.getElementById('learning-mean')._fullData.find(t => t.name === 'tis').y]"
    raw = page.evaluate(curve)
    page.locator("#smooth").check()
    page.locator("#learning-mean:not([data-stale])").wait_for()
    smooth = page.evaluate(curve)
    assert smooth[0] == raw[0]
    assert smooth[1] == pytest.approx(0.85 * raw[0] + 0.15 * raw[1], abs=0.02)


def test_benchmark_is_chosen_for_all_figures(open_report, tmp_path):
    root = tmp_path / "two"
    for name, final in (("default", 0.9), ("other", 0.5)):
        write_run(root, Fake(name=name, final=final, num_steps=4, every=2, benchmarks={"aime24": 5, "gsm8k": 20}))
    page = open_report(write(root))
    draw_all(page)
    value = "id => document.getElementById(id)._fullData[0].meta.benchmark"
    assert {page.evaluate(value, figure) for figure in FIGURES[:4]} == {"average"}
    page.locator(".benchmark").first.select_option("gsm8k")
    draw_all(page)
    assert {page.evaluate(value, figure) for figure in FIGURES[:4]} == {"gsm8k"}
    assert page.locator(".benchmark").last.input_value() == "gsm8k"


def test_tables_sort_by_number_and_by_text_with_the_missing_last(open_report, demo):
    page = open_report(demo)

    def column(number: int) -> list[str]:
        return [row.locator("th, td").nth(number).inner_text() for row in page.locator("#table-summary tbody tr").all()]

    heads = page.locator("#table-summary thead th")
    labels = [head.inner_text() for head in heads.all()]
    best_gain = labels.index("Δ mean@8")
    heads.nth(best_gain).locator("button").click()
    assert heads.nth(best_gain).get_attribute("aria-sort") == "descending"
    gains = [float(cell.split()[0].replace("−", "-")) for cell in column(best_gain) if cell != "–"]
    assert gains == sorted(gains, reverse=True) and len(gains) == 6
    assert column(best_gain)[-3:] == ["–", "–", "–"]
    heads.nth(best_gain).locator("button").click()
    assert heads.nth(best_gain).get_attribute("aria-sort") == "ascending"
    assert column(best_gain)[-3:] == ["–", "–", "–"] and column(best_gain)[0].startswith("−")
    heads.nth(0).locator("button").press("Enter")
    assert column(0) == sorted(column(0)) and heads.nth(best_gain).get_attribute("aria-sort") is None


def test_dark_and_light(open_report, demo, tmp_path):
    look = "() => [getComputedStyle(document.body).backgroundColor, document.querySelector('.xtick text').style.fill]"
    seen = {}
    for scheme in ("light", "dark"):
        page = open_report(demo, scheme=scheme)
        page.locator("#learning-mean").scroll_into_view_if_needed()
        page.locator("#learning-mean .xtick text").first.wait_for()
        seen[scheme] = page.evaluate(look)
        page.screenshot(path=tmp_path / f"{scheme}.png")
        assert page.locator("#theme").inner_text() == ("Light mode" if scheme == "dark" else "Dark mode")
    assert seen["light"][0] == "rgb(246, 246, 243)" and seen["dark"][0] == "rgb(17, 17, 16)"
    assert seen["light"][1] != seen["dark"][1]
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()
    page = open_report(demo, scheme="dark")
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Dark mode"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == seen["light"][0]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(open_report, hostile, width):
    page = open_report(hostile, width=width, height=844)
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wider = page.evaluate(
        """width => [...document.querySelectorAll("header *, .tile, .card, figure, .plot, .selection, .chip, h2, p")]
        .filter(e => !e.closest(".scroll, .chips") && e.getBoundingClientRect().right > width + 0.5)
        .map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert wider == []


def test_text_is_as_large_and_as_distinct_as_it_must_be(open_report, demo):
    """WCAG AA on the page's own text: 4.5:1, in both themes; and 12 px or more."""
    for scheme in ("light", "dark"):
        page = open_report(demo, scheme=scheme)
        poor = page.evaluate(POOR_TEXT)
        assert poor == []


def test_column_of_lengths_is_set_as_other_numbers_are(open_report, demo):
    page = open_report(demo)
    look = """index => {
      const cell = document.querySelector("#table-scores tbody tr").cells[index], style = getComputedStyle(cell);
      const text = document.createRange();
      text.selectNodeContents(cell);
      return [style.textAlign, style.fontFamily, style.fontSize, style.lineHeight, style.whiteSpace,
              Math.round(cell.getBoundingClientRect().right - text.getBoundingClientRect().right)];
    }"""
    heads = page.locator("#table-scores thead th").all_inner_texts()
    length, truncated = (page.evaluate(look, heads.index(name)) for name in ("length", "truncated"))
    assert length == truncated


def test_examples_have_problem_response_answer_and_verdict(open_report, demo):
    for width in (1280, 390):
        page = open_report(demo, width=width)
        assert page.locator("#table-answers thead th").all_inner_texts()[5:] == [
            "Problem", "Response", "Its answer", "Right answer", "Verdict"
        ]  # fmt: skip
        row = page.locator("#table-answers tbody tr").first
        assert (row.locator("td").nth(4).inner_text() or "").startswith("So, what is")
        assert "↵ it is" in row.inner_text()
        words = set(page.locator("#table-answers .verdict").all_inner_texts())
        assert words == {"✓ correct", "✗ wrong"}
    look = "word => getComputedStyle(document.querySelector(`#table-answers [data-word$=${word}]`)).color"
    assert page.evaluate(look, "correct") != page.evaluate(look, "wrong")
    box = row.locator(".verdict").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> Path:
    """A run without evaluations whose shares are constant and whose drift is of the size of rounding."""
    root = tmp_path_factory.mktemp("reports") / "steady"
    run = write_run(root, Fake(num_steps=20, every=100, config={"evaluate": {"benchmarks": []}}))
    shutil.rmtree(run.path / "evaluate")
    steps = [
        {
            "step": step,
            "time": 1.0 * step,
            "rollout_correction/log_ppl_drift": 6e-9 * (-1) ** step,
            "grad_norm": 1e-4 + 1e-6 * step,
            "response/length": 2e5 + step,
            "rollout_correction/masked": 0.0,
            "filter/kept": 1.0,
            "response/truncated": 0.5,
        }
        for step in range(1, 21)
    ]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in [{"step": 0, "time": 0.1}, *steps]))
    return write(root)


def test_ticks_are_decimals_or_powers_of_ten(open_report, steady):
    page = open_report(steady)
    draw_all(page)
    ticks = {
        figure: page.locator(f"#{figure} .ytick text").all_text_contents()
        for figure in ("rollout-correction-log-ppl-drift", "grad-norm", "response-length", "filter-kept")
    }
    for figure, texts in ticks.items():
        assert texts, figure
        assert all(re.fullmatch(r"−?[\d,.]+(×10−?\d+)?", text.replace("\u200b", "")) for text in texts), texts
    assert any("×10" in text for text in ticks["rollout-correction-log-ppl-drift"])


def test_constant_share_is_drawn_within_0_and_100_percent(open_report, steady):
    page = open_report(steady)
    draw_all(page)
    place = "id => document.getElementById(id)._fullLayout.yaxis.range"
    for figure in ("filter-kept", "rollout-correction-masked", "response-truncated"):
        low, high = page.evaluate(place, figure)
        assert 0 == low < high <= 100, figure


def test_finished_run_without_evaluation_is_called_that(open_report, steady):
    page = open_report(steady)
    assert page.locator(".chip").all_inner_texts() == ["default (finished, no evaluation)"]
    assert page.locator("#table-summary tbody td").last.inner_text() == "finished, no evaluation"


def test_hostile_records_stay_inert(open_report, hostile):
    page = open_report(hostile)
    draw_all(page)
    page.locator("#all").click()
    for label in page.locator("#learning-mean .trace").all()[:5]:
        label.hover(force=True)
    assert page.evaluate("window.hacked") is None
    assert page.locator("body img, .plot a, .scroll a, .chips a").count() == 0
    assert page.locator("td", has_text="<img src=x onerror=").count() > 0
    assert {name for name in drawn(page, "learning-mean") if "img" in name} == {
        '"&gt;&lt;img src=x onerror="window.hacked = 1"&gt; †'  # they were asked other questions
    }


def test_policy_of_the_page_stops_a_script_that_should_not_be_there(browser, hostile):
    page = browser.new_page()
    page.goto(hostile.as_uri())
    page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 1'>");
          const script = document.createElement("script");
          script.textContent = "window.hacked = 2";
          document.body.append(script);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    page.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reports") / "many"
    for number in range(30):
        name = "default" if number == 0 else f"run-{number:02d}"
        write_run(root, Fake(name=name, num_steps=2, every=2, k=2, benchmarks={"x": 5}))
    return write(root)


def test_many_runs_can_be_searched_and_start_with_a_few(open_report, many):
    page = open_report(many)
    assert page.locator("#status").inner_text() == "8 of 30 runs shown"
    page.locator("#find").fill("run-2")
    assert page.locator(".chip:visible").count() == 10
    page.locator("#none").click()
    page.locator("#all").click()
    assert page.locator("#status").inner_text() == "18 of 30 runs shown"  # eight at first, ten found


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_box_of_runs_shows_whole_rows(open_report, many, width):
    page = open_report(many, width=width)
    cut = page.evaluate(
        """() => {
          const box = document.querySelector(".chips").getBoundingClientRect();
          return [...document.querySelectorAll(".chip")].map(chip => chip.getBoundingClientRect())
            .filter(chip => chip.top < box.bottom && chip.bottom > box.bottom + 0.5).length;
        }"""
    )
    assert cut == 0 and page.locator(".chip").count() == 30


def test_long_table_is_whole_when_it_is_asked_for(open_report, many):
    with (many.parent / "tables" / "answers.csv").open(newline="") as file:
        written = [[row["label"], row["problem"]] for row in csv.DictReader(file)]
    assert len(written) == 150
    ask: dict[str, Callable[[Any], None]] = {
        "the button": lambda page: page.locator("#answers .more button").click(),
        "sorting": lambda page: page.locator("#table-answers thead button").first.click(),
        "the filter": lambda page: page.locator("#answers .filter input").fill("run"),
    }
    for way, action in ask.items():
        page = open_report(many)
        rows = page.locator("#table-answers tbody tr")
        assert rows.count() == 100 and "The first 100 of 150 rows" in page.locator("#answers").inner_text(), way
        action(page)
        assert rows.count() == 150 and page.locator("#answers .more").count() == 0, way
    page = open_report(many)
    page.locator("#answers .more button").click()
    page.locator("#all").click()
    shown = [row.locator("th, td").all_inner_texts() for row in page.locator("#table-answers tbody tr").all()]
    assert [[row[0], row[4]] for row in shown] == written
    page.locator("#none").click()
    assert not any(row.is_visible() for row in page.locator("#table-answers tbody tr").all())


def test_page_without_scripts_still_shows_its_numbers(browser, demo):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(demo.as_uri())
    assert page.locator("#table-summary tbody tr").count() == 9
    assert "The figures need JavaScript" in page.locator("noscript").inner_text()
    context.close()


# ---- the published study


def numbers(page, figure: str) -> list[list[str]]:
    """The table that stands in for a figure."""
    place = page.locator(f'.numbers[data-panel="{figure}"]')
    place.scroll_into_view_if_needed()
    page.locator(f"#{figure}:not([data-stale])").wait_for()
    if place.get_attribute("open") is None:
        place.locator("summary").press("Enter")
    place.locator("tbody").wait_for()
    return [row.locator("td").all_inner_texts() for row in place.locator("tbody tr").all()]


def test_every_published_figure_is_drawn_and_has_its_numbers(open_report, published):
    page = open_report(published)
    figures = [place.get_attribute("id") for place in page.locator(".plot").all()]
    assert {"stability-diagnostics", "stability-outcomes", "explorer", "ratios", "divergence-bars"} <= set(figures)
    assert {"ensemble-mean", "cost", "seeds"} <= set(figures)
    for figure in ("stability-outcomes", "explorer", "divergence-bars", "cost", "seeds"):
        assert drawn(page, figure), figure
    bars = {row[0]: row for row in numbers(page, "divergence-bars")}
    assert list(bars) == ["mis", "hellinger", "naive_k3"]
    low, high = bars["naive_k3"][3].split(" to ")
    assert float(low) < float(bars["naive_k3"][1]) < float(high)


def test_summary_comes_first_then_verdicts_of_claims_that_were_run(open_report, published):
    page = open_report(published)
    cards = [card.get_attribute("id") for card in page.locator("main section.card").all()]
    assert cards[:2] == ["summary", "verdicts"]
    words = page.locator("#table-verdicts .verdict").all_inner_texts()
    assert words and set(words) <= set(VERDICTS) - {"not run"}
    folded = page.locator("#table-not_run tbody tr")
    assert folded.count() > 0 and not folded.first.is_visible()
    page.locator("#not_run summary").press("Enter")
    assert folded.first.is_visible()
    assert page.locator("#not_run summary").inner_text() == f"{folded.count()} claims that were not run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_and_scores_are_on_a_phones_screen(open_report, published, scheme):
    page = open_report(published, width=390, height=844, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for verdict in page.locator("#table-verdicts .verdict").all():
        box, claim = verdict.bounding_box(), verdict.locator("xpath=ancestor::tr/th").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert claim["y"] + claim["height"] <= box["y"] + 1  # below its claim
    heads = [head.inner_text() for head in page.locator("#table-summary thead th").all()]
    for cell in page.locator("#table-summary tbody tr").first.locator("th, td").all()[: heads.index("mean@4") + 1]:
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_metric_of_a_figure_is_chosen(open_report, published):
    page = open_report(published)
    first = {row[0] for row in numbers(page, "stability-outcomes")}
    assert first == {"mis", "naive", "tis"}
    page.locator('[data-panel="stability-outcomes"][data-key="metric"]').select_option("divergence/reverse_kl")
    steps = [float(row[1]) for row in numbers(page, "stability-outcomes") if row[0] == "mis"]
    assert steps == list(range(1, 21))


def test_comparison_narrows_what_is_shown(open_report, published):
    page = open_report(published)
    assert page.locator("#focus").input_value() == "stability"  # of more than twelve arms, one comparison at first
    assert set(drawn(page, "learning-mean")) == {"mis", "naive", "tis"}
    page.locator("#focus").select_option("filter")
    assert set(drawn(page, "learning-mean")) == {"mis", "kl_0_30", "kl_70_100"}
    assert page.locator(".chip:visible").count() == 3
    assert set(drawn(page, "divergence-bars")) >= {"hellinger"}  # a comparison's own figure keeps its arms
    page.locator("#focus").select_option("")
    assert "hard_switch" in drawn(page, "learning-mean")


def test_address_holds_the_figure_and_all_that_is_chosen(open_report, published):
    page = open_report(published)
    page.locator("#focus").select_option("")
    chip(page, "hellinger").click()
    page.locator('[data-panel="explorer"][data-key="axis"]').select_option("temperature")
    page.locator("#smooth").check()
    page.locator(".benchmark").first.select_option("hmmt25")
    page.locator('[href="#figure=explorer"]').click()
    address = page.evaluate("location.hash")
    assert "figure=explorer" in address
    other = open_report(published)
    other.evaluate("hash => { location.hash = hash }", address)
    other.wait_for_function("document.getElementById('smooth').checked")
    assert other.locator("#focus").input_value() == ""
    assert chip(other, "hellinger").get_attribute("aria-pressed") == "false"
    assert other.locator('[data-panel="explorer"][data-key="axis"]').input_value() == "temperature"
    assert other.locator(".benchmark").first.input_value() == "hmmt25"
    top = other.locator("#figure-explorer").bounding_box()
    assert top is not None and 0 <= top["y"] < 400
    assert [row[1] for row in numbers(other, "explorer") if row[0] == "average"] == ["0.5", "1.0", "1.2"]


def test_address_of_another_report_does_no_harm(open_report, published):
    page = open_report(published)
    page.evaluate("location.hash = '#figure=<img src=x>&of=nothing&show=zzz&explorer.axis=none&rollouts=1'")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('0 of')")
    assert page.locator("#focus").input_value() == "stability"


def test_tokens_are_coloured_by_advantage_and_struck_out_where_not_learned(open_report, published):
    page = open_report(published)
    answer = page.locator(".pieces").first
    pieces = answer.locator("span, s").all()
    assert [piece.evaluate("piece => piece.tagName") for piece in pieces] == ["SPAN"] * 2 + ["S"] * 2 + ["SPAN"] * 3
    assert pieces[0].get_attribute("class") == "up" and pieces[1].get_attribute("class") == "down"
    colour = "piece => getComputedStyle(piece).backgroundColor"
    assert pieces[0].evaluate(colour) != pieces[1].evaluate(colour)
    assert pieces[1].get_attribute("title") == "advantage -1, log r 1"
    assert (pieces[2].get_attribute("title") or "").startswith("not learned")


def test_hostile_tokens_stay_text(open_report, hostile):
    page = open_report(hostile)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#responses img, #responses a, #responses script, #responses b").count() == 0
    assert "</script><script>window.hacked = 1" in page.locator(".pieces").first.inner_text()


def test_tables_are_filtered(open_report, published):
    page = open_report(published)
    page.locator('.filter input[aria-controls="table-scores"]').fill("hellinger")
    shown = [row for row in page.locator("#table-scores tbody tr").all() if row.is_visible()]
    assert len(shown) == 3 and all("hellinger" in row.inner_text() for row in shown)


def test_published_page_is_readable_in_both_themes_and_on_a_phone(open_report, published, tmp_path):
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        page = open_report(published, scheme=scheme, width=width)
        draw_all(page)
        assert page.evaluate(POOR_TEXT) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        image = tmp_path / f"{scheme}-{width}.png"
        page.screenshot(path=image, full_page=True)
        assert image.stat().st_size > 50_000


# ---- the page that a run writes of a step's rollouts


@pytest.fixture(scope="module")
def rollout_page(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rollouts") / "step_000004.html"
    file.write_text(pages.page({**rollouts(np.random.default_rng(0), HOSTILE), "step": 4}), errors="replace")
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_rollout_page_is_legible_in_both_modes_in_blue_and_orange(browser, rollout_page, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(rollout_page.as_uri())
    assert page.evaluate(POOR_TEXT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("script, img").count() == 0 and page.evaluate("window.hacked") is None
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(17, 17, 16)" if scheme == "dark" else "rgb(246, 246, 243)")
    look = "kind => getComputedStyle(document.querySelector(`.note .${kind}`)).backgroundColor"
    for kind, bluer in (("up", True), ("down", False)):
        red, green, blue = (float(part) for part in re.findall(r"[\d.]+", page.evaluate(look, kind))[:3])
        assert (blue > green > red) if bluer else (red > green > blue), kind
    page.close()
