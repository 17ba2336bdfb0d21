import time

import pytest
from hypothesis import given, strategies as st

from opd.grading import answer
from opd.grading.answer import Extracted, find_answer, find_gold, number, plain, same

PIECES = [r"\boxed{", "}", "{", r"\text{", "$", "$$", r"\(", r"\)", r"\frac", "\\", ",", ".", "and", "\n", " ", "\x00"]
PIECES += [
    "####",
    "<answer>",
    "</answer>",
    "answer is",
    "final answer is",
    "</think>",
    "1",
    "-2.5",
    "1,000",
    "x",
    "\ud800",
]


@pytest.mark.parametrize(
    ("response", "text", "bare"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}", True),
        (r"\boxed{1} then \boxed{2}", "2", True),
        (r"\boxed{1} and \boxed{2}, $\boxed{3}$", "1, 2, 3", True),
        (r"\boxed{7} or \boxed{7}", "7", True),
        (r"\boxed{\{1, 2\}} \boxed{", r"\{1, 2\}", True),  # an unfinished box is none
        (r"\boxed{} \boxed 7", "7", True),
        (r"\boxed{5} #### 6", "5", True),
        (r"\boxed{5}. Final answer: The final answer is $6$.", ". Final answer: The final answer is $6$.", False),
        ("3+4=7\n#### 7", "7", True),
        ("#### 1,234\nThank you", "1,234", True),
        ("#### Step 2\nwe get 5 apples", "#### Step 2\nwe get 5 apples", False),  # a heading is no answer
        ("<answer>\\(x = 42\\)</answer> bye", "x = 42", True),
        ("Answer: 41 was wrong.\nAnswer: **42**\n", "42", True),
        ("The answer is $4.\nCheck: 2+2.", "$4", True),
        ("The answer is 4 or 5.", "The answer is 4 or 5.", False),
        (r"\boxed{1} </think> it is \boxed{2}", "2", True),
        ("  x^2 + 1 ", "x^2 + 1", True),
        (r"$\text{5}$", "5", True),
        (r"\begin{pmatrix}1\\ 0\end{pmatrix}", r"\begin{pmatrix}1\\ 0\end{pmatrix}", True),
        (r"11,\! 111,\! 100", "11,111,100", True),
        ("\N{MINUS SIGN}5", "-5", True),
        ("\\boxed{\x005}", "5", True),
    ],
)
def test_where_the_answer_is_found(response, text, bare):
    assert find_answer(response) == Extracted(text, bare)


@pytest.mark.parametrize("response", ["", " \n\t", "$$", "\x00", r"\boxed{1}</think>", "print('x') or 0"])
def test_nothing_to_find(response):
    assert find_answer(response) is None or not find_answer(response).text.strip("$")


def test_program_text_has_no_answer():
    assert find_answer("open('marker', 'w').write('x') or 0") is None


@pytest.mark.parametrize(
    ("gold", "text", "bare"),
    [
        ("72", "72", True),
        (r"\$10", r"\$10", True),
        (r"\text{(A)}", "(A)", True),
        (r"Adding, we get $\boxed{14}$ as our answer.", "14", True),
        ("He sells 5.\n#### 72", "72", True),
        ("$3$ or $4$", "$3$ or $4$", False),
        ("uncountable", "uncountable", True),
        (r"O(n^3 \log k)", r"O(n^3 \log k)", True),
    ],
)
def test_where_the_gold_is_found(gold, text, bare):
    assert find_gold(gold) == Extracted(text, bare)


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("46", "46", True),
        ("046", "46", True),
        ("1,000", "1000.0", True),
        ("-0", "0", True),
        ("$4.50", "4.5", True),
        ("46", "47", False),
        ("5", "5.001", False),
        ("100000000000000000000", "100000000001000000000", False),
        ("0.0666668", "0.066666793", None),  # within math-verify's rounding: its verdict
        ("1/2", "0.5", None),
        ("5", r"\frac{10}{2}", None),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left(1, 2\right)", "(1, 2)", True),
        ("yes", "Yes", True),
        ("n", "N", None),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "9" * 4999 + "8", False),
    ],
)
def test_what_is_plain_to_see(one, other, verdict):
    assert same(Extracted(one, bare=True), Extracted(other, bare=True)) is verdict
    assert same(Extracted(other, bare=True), Extracted(one, bare=True)) is verdict


def test_prose_is_never_plain_to_see():
    assert same(Extracted("5", bare=False), Extracted("5", bare=True)) is None


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("1,000", "1000"),
        ("007", "7"),
        ("5.0", "5"),
        ("-0.50", "-0.5"),
        (".25", "0.25"),
        ("$4", "4"),
        ("+3", "3"),
        ("x", "x"),
    ],
)
def test_numbers_are_recorded_in_one_form(text, recorded):
    assert plain(text) == recorded


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_number_keeps_its_value_in_its_recorded_form(value, places):
    text = f"{value / 10**places:,.{places}f}"
    assert number(plain(text)) == number(text)


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text(max_size=200))
def test_no_text_is_too_strange(text):
    found, gold = find_answer(text), find_gold(text)
    for each in (found, gold):
        if each:
            assert each.text and each.text.encode() and "\x00" not in each.text and len(plain(each.text)) <= answer.TAIL
    if found and gold:
        assert same(found, gold) in (True, False, None)


@pytest.mark.parametrize(
    "piece", [*PIECES, r"\(\[", ",,", r"\boxed{1},", r"\text{a", r"\boxed{" + "{" * 9, "answer: $", "####\n"]
)
def test_a_long_text_takes_as_long_as_a_plain_one(piece):
    text = piece * (answer.TAIL // len(piece))
    started = time.process_time()
    find_answer(text)
    find_gold(text)
    assert time.process_time() - started < 0.2  # 5 ms where this was measured; the square of 8192 takes seconds


def test_only_the_end_is_looked_at():
    assert find_answer(r"\boxed{5}" + " filler" * answer.TAIL) != Extracted("5", bare=True)
    assert find_answer("x" * 10_000_000 + r" \boxed{5}") == Extracted("5", bare=True)
