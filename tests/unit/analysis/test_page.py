import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from analysis.claims import verdicts
from analysis.contrasts import Bootstrap
from analysis.costs import costs
from analysis.figures.panels import all_panels
from analysis.headline import headline
from analysis.load import load
from analysis.page import GROUPS, html_page, markdown_page
from analysis.published_tables import all_tables
from analysis.results import analyse
from analysis.topics import members
from tests.unit.analysis.fake_runs import HOSTILE
from tests.unit.analysis.published_runs import SCORES


class Elements(HTMLParser):
    """The page's elements with their attributes, and the text of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open = tag == "script"
        if self.open:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.open = self.open and tag != "script"

    def handle_data(self, data):
        if self.open:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def rendered(root, *, baseline: str = "default") -> tuple[str, str]:
    results = analyse(load(root), baseline=baseline, bootstrap=Bootstrap(count=200, seed=0))
    head, of_topic, spent = headline(results), members(results), costs(results)
    tables = {
        table.name: table for table in all_tables(results, members=of_topic, costs=spent, verdicts=verdicts(results))
    }
    drawn = all_panels(results, members=of_topic, costs=spent, alpha=0.15)
    return html_page(results, head, tables, drawn, of_topic, alpha=0.15), markdown_page(head, tables)


@pytest.fixture(scope="module")
def pages(all_runs) -> tuple[str, str]:
    return rendered(all_runs)


@pytest.fixture(scope="module")
def elements(pages) -> Elements:
    return Elements(pages[0])


def test_page_asks_nothing_of_the_network(elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:,")), (tag, attributes)
    assert [tag for tag, _ in elements.found if tag in ("iframe", "object", "embed", "form", "base")] == []


def test_policy_allows_the_page_s_own_scripts_and_nothing_else(elements):
    (policy,) = (meta["content"] for meta in elements.all("meta") if meta.get("http-equiv"))
    assert (
        policy is not None and "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("style-src")[0]
    )
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    executable = [
        script
        for script, attributes in zip(elements.scripts, elements.all("script"), strict=True)
        if attributes.get("type") != "application/json"
    ]
    assert {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in executable} == allowed
    assert len(executable) == 2 and sum("plotly.js v" in script[:200] for script in executable) == 1
    assert not any("\r" in script for script in executable)  # a browser would hash another text


def test_nothing_of_a_record_becomes_markup(elements):
    tags = {tag for tag, _ in elements.found}
    assert "img" not in tags and "b" not in tags
    assert len(elements.all("script")) == 3
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert any("<img src=x onerror=" in text for text in elements.text)  # shown as the text that it is


def test_templates_in_a_record_are_not_filled_in(pages):
    assert "{{ 7 * 7 }} {% raw %}" in pages[0] and r"{{ 7 \* 7 }} {% raw %}" in pages[1]


def test_data_of_the_figures_is_json(elements):
    data = json.loads(elements.scripts[0])
    assert {panel["id"] for panel in data["panels"]} == {
        attributes["id"] for _, attributes in elements.found if attributes.get("class") == "plot"
    }
    for panel in data["panels"]:
        for style, meta, x, y in panel["traces"]:
            assert len(data["pool"][x]) == len(data["pool"][y])
            assert "name" in data["pool"][style] and "slot" in data["pool"][meta]


def test_every_arm_has_one_chip_and_rows_name_their_arm(elements):
    chips = [attributes["data-arm"] for attributes in elements.all("button") if attributes.get("class") == "chip"]
    assert len(chips) == len(set(chips)) > 10
    assert {attributes["data-arm"] for attributes in elements.all("tr") if "data-arm" in attributes} <= set(chips)


def test_page_can_be_read_by_a_screen_reader(elements):
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements.found:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name) is None or attributes[name] in ids
    assert elements.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in elements.found if tag in ("main", "h1", "header", "footer")] == [
        "header",
        "h1",
        "main",
        "footer",
    ]
    assert all(attributes.get("scope") in ("col", "row") for attributes in elements.all("th"))
    assert all(attributes.get("aria-label") for attributes in elements.all("div") if attributes.get("role") == "img")
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def test_markdown_has_every_table_and_no_html(pages):
    page = pages[1]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [
        "Summary",
        "Published claims",
        "Settings of the default",
        "Ranking",
        "Scores on each benchmark",
        "Differences to default",
        "Every run",
        "Examples of answers",
        "Left out",
        "How the numbers are made",
    ]
    assert not re.search("<[a-z/]", page)
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_in_no_script(elements, text):
    for script, attributes in zip(elements.scripts, elements.all("script"), strict=True):
        if attributes.get("type") != "application/json":
            assert text not in script


def test_claims_that_were_not_run_are_folded(elements, pages):
    page = pages[0]
    (count,) = re.findall(r"<summary[^>]*>(\d+) claims that were not run", page)
    shown, folded = (page.split(f'id="table-{name}"')[1].split("</table>")[0] for name in ("verdicts", "not_run"))
    assert folded.count("<tr") - 1 == int(count) > 0
    assert shown.count("<tr") - 1 == shown.count("data-word=") > 0 and 'data-word="not run"' not in shown
    assert page.index('id="summary"') < page.index('id="verdicts"') < page.index("<details")


def test_texts_of_models_are_shown_as_text(elements):
    cells = "".join(elements.text)
    for start in ("</script><script>window.hacked", '"><img src=x onerror='):
        assert re.search(re.escape(start) + r"[^,]*, what is", cells)  # a problem's text
        assert re.search(re.escape(start) + r"[^,]*↵ it is", cells)  # a response
    assert "\u2028" not in "".join(elements.scripts) + cells


def test_page_without_any_result(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("a: 1\n")
    page, _ = rendered(tmp_path)
    found = Elements(page)
    assert "No student has been evaluated yet" in page and "foreign" in found.text
    assert json.loads(found.scripts[0])["panels"] == []


def test_published_study_has_every_published_figure_and_table(published_runs):
    page, text = rendered(published_runs, baseline="mis")
    found = Elements(page)
    groups = [attributes["id"] for _, attributes in found.found if (attributes.get("id") or "").startswith("group-")]
    assert groups == [f"group-{name}" for name in GROUPS]
    for title in ("Settings of the default", "Hyper-parameters, one at a time", "Token filters", "Cost"):
        assert f"\n## {title}\n" in text
    data = json.loads(found.scripts[0])
    assert {*data["topics"]} == {
        "stability", "divergence", "ensemble", "filter", "epochs", "temperature", "teacher_size"
    }  # fmt: skip
    assert len(data["rollouts"]) == len(SCORES) and data["rollouts"][0]["responses"][0]["tokens"][4] == "↵"
