"""All rules on what may not start, and warnings about what may.

`docs/refusals.md` is made from `RULES`.
"""

import os

from opd.check import objective_rules, run_rules, signal_rules, teacher_rules
from opd.check.rule import Rule
from opd.check.signal import uses_grades, weighted_terms
from opd.config.schema import RunConfig

# In the order of checking: the user sees the first refusal.
RULES: list[Rule] = [
    rule
    for module in (objective_rules, teacher_rules, signal_rules, run_rules)
    for value in vars(module).values()
    for rule in (value if isinstance(value, list) else [value])
    if isinstance(rule, Rule)
]


def warnings(config: RunConfig) -> list[str]:
    """Warnings about a config that may start."""
    messages = []
    learned = {term.name for term in weighted_terms(config)}
    no_signal = learned <= {"divergence", "near_start"}  # both are 0 for a student at its start
    if config.teacher.models == ["self"] and no_signal and not uses_grades(config):
        messages.append(
            "teacher.models=[self]: the student starts as its own teacher, so every advantage is zero and nothing is "
            "learned; name a teacher with teacher.models=[PATH]"
        )
    if signal_rules.heuristic(config):
        messages.append(
            "gamma and divergence: only for reverse KL is what later tokens add up to the gradient of a sequence's "
            "divergence; with allow_heuristic this runs as a heuristic"
        )
    if config.threads and config.threads > (cores := os.cpu_count() or 1):
        messages.append(f"threads={config.threads}: this machine has {cores} cores; more threads than cores are slower")
    return messages
