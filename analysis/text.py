"""Escapes text from records for each place where it is shown. Records come from models and strangers."""

import html
import re
from collections.abc import Iterable, Sequence

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": "'",
    "[": "{[}",
    "]": "{]}",
    "−": r"\ensuremath{-}",
    "Δ": r"\ensuremath{\Delta}",
    "γ": r"\ensuremath{\gamma}",
    "α": r"\ensuremath{\alpha}",
    "×": r"\ensuremath{\times}",
    "π": r"\ensuremath{\pi}",
    "↵": r"\ensuremath{\hookleftarrow}",
    "✓": "",
    "✗": "",
    "\N{NO-BREAK SPACE}": "~",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_BREAKS_OUT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def encodable(text: str) -> str:
    """`text` with lone surrogates, which JSON can hold and UTF-8 cannot, escaped."""
    return text.encode(errors="backslashreplace").decode()


def markdown(text: str) -> str:
    """`text` for a cell of a Markdown table: no markup, no HTML, no end of the cell."""
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of plain cells, aligned to the right."""
    lines = [head, ["---:"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex(text: str) -> str:
    """`text` for LaTeX: no command, no mathematics, no end of a cell or line. Characters that pdflatex lacks become
    their code points.
    """
    return "".join(_LATEX.get(character) or _letter(character) for character in text)


def _letter(character: str) -> str:
    return (
        character
        if character.isascii() or "\u00a1" <= character <= "\u017f" or character in "–—…“”‘’"
        else f"U+{ord(character):04X}"
    )


def csv_cell(text: str) -> str:
    """`text` for a CSV cell, quoted where a spreadsheet would take it for a formula: it starts with =, +, - or @."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def plot_label(text: str) -> str:
    """`text` for a plotly label, which interprets a few HTML tags and entities, and TeX between dollars."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def script_json(text: str) -> str:
    """JSON `text` for a `<script>` element: nothing in it can end the element."""
    return re.sub("[<>&\u2028\u2029]", lambda match: _BREAKS_OUT[match[0]], text)
