"""The committed values of every experiment: one file a scale, of which each experiment has its differences.

`default` is the whole config by dotted key. An experiment is what `set`s and `unset`s keys of it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis.config_diff import applied, difference

GOLDEN = Path(__file__).parent / "golden" / "configs"


@cache
def goldens(scale: str) -> dict[str, dict[str, Any]]:
    """Experiment → its config by dotted key; `default` is one."""
    committed = yaml.safe_load((GOLDEN / f"{scale}.yaml").read_text())
    default = committed["default"]
    return {"default": default} | {name: applied(default, own) for name, own in committed["experiments"].items()}


def write_goldens(scale: str, configs: dict[str, dict[str, Any]]) -> None:
    """Writes what `goldens` reads."""
    changes = {name: difference(configs["default"], own) for name, own in configs.items() if name != "default"}
    content = yaml.safe_dump({"default": configs["default"], "experiments": changes}, width=120)
    (GOLDEN / f"{scale}.yaml").write_text(content)
    goldens.cache_clear()
