import csv
import io
import json

import pytest
from hypothesis import given, strategies as st

from analysis.text import csv_cell, encodable, markdown, plot_label, script_json
from opd.printable import printable

ANY = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand  more", "two lines and more"),
        ("nul\x00", "nul\ufffd"),
        ("lone \ud800", "lone \ufffd"),
        ("turned \u202egnp.exe", "turned \ufffdgnp.exe"),
        ("hid\u200bden", "hid\ufffdden"),
        ("x" * 50, "x" * 19 + "…"),
        ("Größe 你好 ≥", "Größe 你好 ≥"),
    ],
)
def test_printable_by_hand(text, shown):
    assert printable(text, limit=20) == shown


@given(ANY, st.integers(1, 40))
def test_printable_is_short_visible_and_can_be_written(text, limit):
    shown = printable(text, limit=limit)
    assert len(shown) <= limit
    assert shown.encode().decode() == shown
    assert "\n" not in shown and "\r" not in shown and "\x00" not in shown
    assert printable(shown, limit=limit) == shown


@given(ANY)
def test_encodable_can_be_written_and_leaves_the_sound_alone(text):
    assert encodable(text).encode().decode() == encodable(text)
    assert encodable("sound ≥") == "sound ≥"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\rx", "＝1"])
def test_formula_is_text_in_a_spreadsheet(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-12", "+3.5", "12", "a=b", "x-y", ""])
def test_number_and_plain_text_stay_as_they_are_in_csv(text):
    assert csv_cell(text) == text


@given(ANY)
def test_no_csv_cell_starts_as_a_formula(text):
    cell = csv_cell(printable(text, limit=100))
    out = io.StringIO()
    csv.writer(out).writerow([cell])
    assert next(csv.reader(io.StringIO(out.getvalue()))) == [cell]
    assert cell[:1] not in ("=", "@") and (cell[:1] not in ("+", "-") or float(cell) is not None)


def test_markdown_has_neither_markup_nor_html_nor_a_cell_border():
    assert markdown("a|b `c` *d* _e_ [f](g) <b>&amp;") == r"a\|b \`c\` \*d\* \_e\_ \[f\](g) &lt;b&gt;&amp;amp;"


def test_plot_label_has_no_tags():
    assert plot_label('<a href="javascript:x">&') == '&lt;a href="javascript:x"&gt;&amp;'
    assert plot_label("$x$") == "&#36;x&#36;"


@given(ANY)
def test_json_in_a_script_element_says_the_same_and_cannot_end_it(text):
    written = script_json(json.dumps({"</script><!--": text}, ensure_ascii=False))
    assert json.loads(written) == {"</script><!--": text}
    assert not set("<>&\u2028\u2029") & set(written)
