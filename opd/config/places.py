"""Where the project keeps its files."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# The parent of the packages: a checkout, a copy of one made by a sweep, or the site-packages of an environment.
ROOT = _PACKAGE.parent

# Inside the package where that is installed, next to it in a checkout.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else ROOT / "conf"
