"""Where the project keeps its files."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# What the packages stand in: a checkout, a copy of one that a sweep has made, or the packages of an environment.
ROOT = _PACKAGE.parent

# Values, and nothing else: inside the package where that was installed, beside it in a checkout.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else ROOT / "conf"
