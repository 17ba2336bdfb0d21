"""A rule: a combination of keys that may not start, with its reason, its condition and its remedy in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opd.config.schema import RunConfig

# What would be right, where a config is refused; None where it may start.
Remedy = Callable[[RunConfig], str | None]


@dataclass(frozen=True)
class Rule:
    """Refuses a config for which `remedy` returns one. Checked only if the config has all of `keys`."""

    keys: tuple[str, ...]
    reason: str
    remedy: Remedy

    def refusal(self, config: RunConfig) -> str | None:
        """The sentence that refuses the config, or None."""
        if not all(has(config, key) for key in self.keys) or (remedy := self.remedy(config)) is None:
            return None
        return f"{' and '.join(self.keys)}: {self.reason}; {remedy}"


def rule(*keys: str, reason: str) -> Callable[[Remedy], Rule]:
    """Makes a `Rule` of its remedy."""
    return lambda remedy: Rule(keys, reason, remedy)


def has(config: RunConfig, key: str) -> bool:
    """Whether a config has a key: not every method has every knob, nor every source or engine every setting."""
    value: Any = config
    for name in key.split("."):
        fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        if name not in fields:
            return False
        value = fields[name]
    return True
