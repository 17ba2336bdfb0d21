"""A run that was begun under another spelling of its numbers: `rollout.temperature=1` where today's config has 1.0."""

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd.config.identity import as_today, config_hash, hashed, run_id
from opd.config.schema import RunConfig
from opd.records.files import RecordError, read_config


def as_begun(config: RunConfig) -> RunConfig:
    """The config, with the numbers of its methods as an equal run of its study has them, where there is one.

    Knobs are read by their type today; before, a whole number in the place of another was part of a run's hash.
    """
    content = asdict(config)
    study = Path(config.paths.outputs) / config.study
    if (study / run_id(content)).exists():
        return config
    for folder in sorted(study.glob(f"{config.name}-????????-s{config.seed}")):
        recorded = _recorded(folder / "config.yaml")
        if recorded is not None and hashed(recorded) == hashed(content):  # 1 is 1.0 here, and not in the hash
            methods = [key for key, value in content.items() if isinstance(value, dict) and "_target_" in value]
            begun = replace(config, **{key: recorded[key] for key in methods})
            if folder.name == run_id(asdict(begun)):
                return begun
    return config


@lru_cache(maxsize=4096)
def _recorded(file: Path) -> dict[str, Any] | None:
    try:
        config = as_today(read_config(file))
        return config if file.parent.name.endswith(f"-{config_hash(config)[:8]}-s{config['seed']}") else None
    except (RecordError, KeyError, TypeError, AttributeError):
        return None
