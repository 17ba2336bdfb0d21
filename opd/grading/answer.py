r"""Extract the answer of a response, and compare answers where that needs no computer algebra.

Everything runs in time linear in the text: responses are hostile.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

# The answer is extracted from this many last characters: about 2,500 tokens, more than any conclusion in the public
# graders' test suites, and few enough that the quadratic patterns of math-verify end within its time limit.
TAIL = 8192

# Longer texts are no answers: the longest gold answer of the public sets has 80 characters.
LONGEST_ANSWER = 1000

# Longer numerals are left to math-verify: Python refuses to read those of more than 4,300 digits.
LONGEST_NUMBER = 40

# "and", "or" or a comma between two boxes, with the dollars and spaces around it, is shorter than this.
LONGEST_JOINT = 40

# Layers of delimiters around an answer, as in `$\\text{$5$}$`.
DEEPEST_WRAP = 4

# math-verify rounds floats to six decimals: it takes two decimals this far apart as different.
FLOAT_GAP = Fraction(11, 10_000_000)


@dataclass(frozen=True)
class Extracted:
    """An extracted answer. `bare`: `text` is the answer itself; otherwise prose from which math-verify extracts it."""

    text: str
    bare: bool


def find_answer(response: str) -> Extracted | None:
    r"""Extract the answer from the last `TAIL` characters of a response, after `</think>` where there is one.

    In order of precedence: the last `\boxed{…}` (with those that "and", "or" or a comma join to it; a last one that is
    not closed ends with its line) unless a "final answer is …" follows it; the last `#### …` that is a number or ends
    the response; the last `<answer>…</answer>`; a last "answer is …" or "answer: …" that is a number or a time and ends
    its line; a response that is only an answer; all of the prose. None where there is no text.
    """
    tail = clean(response[-TAIL:].rpartition("</think>")[2])
    return _marked(tail) or _unmarked(tail)


def find_gold(gold: str) -> Extracted | None:
    """Extract a gold answer: by its marker as in a response, otherwise all of it, unless it is prose around `$…$`."""
    tail = clean(gold[-TAIL:])
    if marked := _marked(tail):
        return marked
    bare = strip(tail)
    if number(bare) is None and (_DELIMITER.search(bare) or _ANSWER_WORD.search(bare)):
        return Extracted(tail.strip(), bare=False)
    return Extracted(bare, bare=True) if bare else None


def reconciled(answer: Extracted, gold: Extracted) -> tuple[Extracted, Extracted]:
    r"""The two as they are to be compared: of a choice with its label, `\textbf{(B)}\ 12`, the label where the other is
    a letter alone, else what it labels; of two percentages the numbers.
    """
    if not (answer.bare and gold.bare):
        return answer, gold
    texts = answer.text, gold.text
    choices = [_choice(text) for text in texts]
    letters = [text if _LETTER.fullmatch(text) else "" for text in map(_unbracketed, texts)]
    texts = tuple(
        (own[0] if other or other_choice else own[1]) if own else text
        for text, own, other, other_choice in zip(texts, choices, letters[::-1], choices[::-1], strict=True)
    )
    if all(_PERCENT.search(text) for text in texts):
        texts = tuple(_PERCENT.sub("", text) for text in texts)
    return Extracted(texts[0], bare=True), Extracted(texts[1], bare=True)


def same(answer: Extracted, gold: Extracted) -> bool | None:
    """Whether two answers are equal, where text or plain numbers decide; None where math-verify has to."""
    if not answer.bare and gold.bare and _TIME.fullmatch(gold.text) and (times := _TIME.findall(answer.text)):
        return times[-1] == gold.text
    if not (answer.bare and gold.bare):
        return None
    bases = _BASED.fullmatch(answer.text), _BASED.fullmatch(gold.text)
    if bases[0] and bases[1]:
        return _in_base(*bases[0].groups()) == _in_base(*bases[1].groups())
    one, other = number(answer.text), number(gold.text)
    if one is not None and other is not None:
        if one == other:
            return True
        return False if one.denominator == other.denominator == 1 or abs(one - other) > FLOAT_GAP else None
    if _identity(answer.text) == _identity(gold.text):
        return True
    return False if len(answer.text) > LONGEST_ANSWER else None


def number(text: str) -> Fraction | None:
    """The exact value of a plain integer or decimal: "1,234", "-0.50", "$4.", "€5"; None for anything else."""
    match = _NUMBER.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    return Fraction(match["sign"] + match["digits"].replace(",", "")) if match else None


def plain(text: str) -> str:
    """The text of an answer for records and votes: plain numbers without commas and redundant zeros."""
    value = number(text)
    if value is None:
        return text[:LONGEST_ANSWER]
    if value.denominator == 1:
        return str(value.numerator)
    digits = _NUMBER.fullmatch(text)["digits"].replace(",", "").rstrip("0")  # pyright: ignore[reportOptionalSubscript]
    whole, _, decimals = digits.partition(".")
    return f"{'-' if value < 0 else ''}{whole.lstrip('0') or '0'}.{decimals}"


def clean(text: str) -> str:
    """Remove control characters and lone surrogates; normalise line ends and minus signs."""
    return (
        _CONTROL.sub(" ", text.replace("\r\n", "\n").replace("\N{MINUS SIGN}", "-")).encode(errors="replace").decode()
    )


def strip(text: str) -> str:
    r"""Strip blanks, math delimiters, `\text{…}`, thin spaces and a full stop around an answer."""
    text = " ".join(_SPACE.sub(" ", _THIN.sub("", text)).split())
    for _ in range(DEEPEST_WRAP):
        if match := _WRAPPED.fullmatch(text):
            text = next(group for group in match.groups() if group is not None).strip()
    return text.rstrip("\\ ").removesuffix(".").rstrip()


# ---- finding


def _marked(text: str) -> Extracted | None:
    box = _last_box(text)
    if box:
        content, end = box
        if _FINAL_ANSWER.search(text, end):
            return Extracted(text[end:], bare=False)
        return Extracted(content, bare=True)
    at = text.rfind("####")
    if at >= 0:
        rest = text[at + 4 :].lstrip(":").strip()
        line = rest.partition("\n")[0]
        if line and (line == rest or number(strip(line)) is not None):
            return _unmarked(line)
    end = text.rfind("</answer>")
    if end >= 0 and (start := text.rfind("<answer>", 0, end)) >= 0:
        return _unmarked(text[start + 8 : end])
    at = max((match.end() for match in _ANSWER_WORD.finditer(text)), default=-1)
    if at >= 0 and (match := _SAYS.match(text, at)):
        content = strip(match["number"])
        if number(content) is not None or _TIME.fullmatch(content):
            return Extracted(content, bare=True)
    return None


def _unmarked(text: str) -> Extracted | None:
    text = text.strip()
    bare = strip(text)
    if not bare:
        return None
    prose = "\n" in text or _DELIMITER.search(bare) or _WORD.search(_COMMAND.sub(" ", text))
    if number(bare) is not None or not prose:
        return Extracted(bare, bare=True)
    if _PROGRAM.search(text.rpartition("\n")[2]):
        return None  # the last number of program text is a literal, not an answer
    return Extracted(text, bare=False)


def _last_box(text: str) -> tuple[str, int] | None:
    r"""(content, end) of the last `\boxed{…}` or `\boxed 7`, with the boxes that are joined to it."""
    boxes = []
    closing = _closing_braces(text)
    for match in _BOXED.finditer(text):
        if text.startswith("{", match.end()):
            stop = closing.get(match.end(), match.end())
            content, end = text[match.end() + 1 : stop], stop + 1
            if stop == match.end() and not _BOXED.search(text, stop):  # the last one, and not closed
                content = text[stop + 1 :].partition("\n")[0].rstrip("$. \\")
                content = "" if content.count("{") != content.count("}") else content
                end = stop + 1 + len(content)
        else:
            word = _BOX_WORD.match(text, match.end())
            content, end = (word[0], word.end()) if word else ("", 0)
        if content.strip():
            boxes.append((match.start(), content, end))
    if not boxes:
        return None
    start, content, end = boxes.pop()
    contents = [strip(content)]
    while boxes and start - boxes[-1][2] < LONGEST_JOINT and _JOINT.fullmatch(text, boxes[-1][2], start):
        start, content, _ = boxes.pop()
        contents.insert(0, strip(content))
    return ", ".join(dict.fromkeys(contents)), end


def _closing_braces(text: str) -> dict[int, int]:
    """Opening brace → its closing one; without escaped and unclosed braces."""
    closing, opened = {}, []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def _choice(text: str) -> tuple[str, str] | None:
    """The label and the rest of a choice that names both."""
    match = _CHOICE.fullmatch(text)
    return (next(filter(None, match.groups())), match["rest"].strip("\\ ~")) if match else None


def _unbracketed(text: str) -> str:
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


def _in_base(digits: str, base: str) -> tuple[str, str] | int:
    """The value of a number in a base; its text where it has digits that the base has not."""
    base = _BASES.get(base.strip(), base.strip())
    try:
        return int(digits, int(base)) if base.isdigit() and 2 <= int(base) <= 36 else (digits, base)
    except ValueError:
        return digits, base


def _identity(text: str) -> str:
    text = _LEFT_RIGHT.sub("", _FRAC.sub(r"\\frac", text))
    return text.casefold() if len(text) > 1 and text.isalpha() else text


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_NUMBER = re.compile(
    r"(?:\\?\$|[€£¥])?\s*(?P<sign>[-+]?)(?:\\?\$|[€£¥])?"
    r"(?P<digits>(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:\s*[€£¥])?\.?"
)
_THIN = re.compile(r"(?<!\\)\\(?:!\s*|,|displaystyle\b)")
_SPACE = re.compile(r"(?<!\\)\\[;: ]|~")
_WRAPPED = re.compile(
    r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:[^\\]|\\[^()])+)\\\)"
    r"|\\\[((?:[^\\]|\\[^\[\]])+)\\\]|\\(?:text|mathrm|textbf|mathbf)\{([^{}]+)\}"
)
_DELIMITER = re.compile(r"\$|\\[(\[]")
_ANSWER_WORD = re.compile(r"\banswer\b", re.IGNORECASE)
_SAYS = re.compile(r"\s*(?:is\b|:|=)[\s:=*]*(?P<number>[-+$€£¥\\0-9.,]+(?::[0-9]{2}\.?)?)\**[ \t]*(?:\n|$)")
_TIME = re.compile(r"(?<![0-9:])[0-9]{1,2}:[0-9]{2}(?![0-9:])")
_LETTER = re.compile(r"[A-J]")
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathbf|mathrm)\{\s*\(?([A-J])\)?[.:]?\s*\}|\(([A-J])\)(?=[\s\\~])|([A-J])[.:)](?=\s))(?P<rest>.+)"
)
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent(?:age)?|pct)\s*\}|\b(?:percent(?:age)?|pct))$")
_BASED = re.compile(r"([0-9A-Za-z]+)_\{?(?:\\(?:text|mathrm)\{)?\s*([0-9]+|[a-z]+)\s*\}{0,2}")
_BASES = {
    **{"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"},
    **{"ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"},
}
_FINAL_ANSWER = re.compile(r"final answer is:?\s*(?:\$|\\\(|\\\[|-?[0-9])", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_BOX_WORD = re.compile(r"[-+]?[0-9A-Za-z.]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_GAP = r"(?:[\s$,;.]|\\[,;:!()\[\] ]|\\q?quad)*"
_JOINT = re.compile(rf"{_GAP}(?:\b(?:and|or)\b|\\text\{{\s*(?:and|or)\s*\}}|,|;){_GAP}")
_COMMAND = re.compile(
    r"\\(?:text|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_PROGRAM = re.compile(r"[\w\])]\(\s*['\"]")
_LEFT_RIGHT = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_FRAC = re.compile(r"\\[dt]frac(?![A-Za-z])")
