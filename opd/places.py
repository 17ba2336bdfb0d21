"""Where the project keeps what it reads."""

from pathlib import Path

# Values, and nothing else.
CONF = Path(__file__).resolve().parent.parent / "conf"
