"""`--help` of the commands that compose a config: the text that `conf/config.yaml` has for Hydra, filled in without
composing anything, for which Hydra takes ten times as long.
"""

from string import Template

from opd.config.places import CONF


def text() -> str:
    """What Hydra would show."""
    from omegaconf import OmegaConf

    shown = OmegaConf.load(CONF / "config.yaml").hydra.help
    return Template(shown.template).substitute(APP_CONFIG_GROUPS=_groups())


def _groups() -> str:
    found: dict[str, list[str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        group = file.parent.relative_to(CONF).as_posix()
        if group != "." and group.partition("/")[0] != "hydra":
            found.setdefault(group, []).append(file.stem)
    return "".join(f"{group}: {', '.join(found[group])}\n" for group in sorted(found))
