"""What tells the runs of one name apart, as `python -m sweeps.status` shows it."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd.config.flat import flat
from opd.config.labels import labels
from opd.records.files import RecordError, read_config
from sweeps.ledger import Ledger, owners
from sweeps.run_state import RunState
from sweeps.state import known_submissions

_ARM = re.compile(r"(?P<arm>(?P<name>.+)-[0-9a-f]{8})-s\d+")


def add_differences(ledger: Ledger, runs: Sequence[RunState]) -> None:
    """Set `differs` of each run of a study whose name several configs have, from its config or that of its submission.

    A run whose config cannot be read is left as it is.
    """
    of = {run.run: found for run in runs if (found := _ARM.fullmatch(run.run))}
    names = {found["arm"]: found["name"] for found in of.values()}
    several = {name for name, count in Counter(names.values()).items() if count > 1}
    if not several:
        return
    submitted, configs = owners(known_submissions(ledger)[0]), {}
    for run, found in of.items():
        if found["name"] not in several or found["arm"] in configs:
            continue
        files = [ledger.study / run / "config.yaml"]
        files += [submitted[run][0].folder / "configs" / f"{run}.yaml"] if run in submitted else []
        with suppress(RecordError, TypeError, AttributeError):
            config = _config(next((file for file in files if file.exists()), files[0]))
            configs[found["arm"]] = {**config, "name": found["name"]}
    shown = labels(configs)
    for run in runs:
        found = of.get(run.run)
        if found and (label := shown.get(found["arm"], found["arm"])) != found["arm"]:
            run.differs = label.removeprefix(found["name"]).strip()


@lru_cache(maxsize=4096)  # a table that is shown again and again does not read them again
def _config(file: Path) -> dict[str, Any]:
    return flat(read_config(file))
