"""All rules on what may not start, and warnings about what may.

`docs/refusals.md` is made from `RULES`.
"""

from opd.check import objective_rules, run_rules, signal_rules, teacher_rules
from opd.check.rule import Rule
from opd.check.signal import uses_grades, weighed
from opd.config.schema import RunConfig

# In the order in which they are asked: the first that refuses is what a user reads.
RULES: list[Rule] = [
    rule
    for module in (objective_rules, teacher_rules, signal_rules, run_rules)
    for found in vars(module).values()
    for rule in (found if isinstance(found, list) else [found])
    if isinstance(rule, Rule)
]


def warnings(config: RunConfig) -> list[str]:
    """Warnings about a config that may start."""
    found = []
    alike = {"divergence", "near_start"} >= {term.name for term in weighed(config)}  # both 0 for a student at its start
    if config.teacher.models == ["self"] and alike and not uses_grades(config):
        found.append(
            "teacher.models=[self]: the student starts as its own teacher, so every advantage is zero and nothing is "
            "learned; name a teacher with teacher.models=[PATH]"
        )
    if signal_rules.heuristic(config):
        found.append(
            "gamma and divergence: only for reverse KL is what later tokens add up to the gradient of a sequence's "
            "divergence; with allow_heuristic this runs as a heuristic"
        )
    return found
