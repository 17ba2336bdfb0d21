"""`--help` of the commands that compose a config, without composing one, for which Hydra takes ten times as long."""

from opd.config import plugins

# Folders of `conf/` that no run chooses from: parts of other files, and settings of other commands.
_OTHERS = ("hydra", "benchmark", "cluster", "recipe", "sweep")


def text(about: str, groups: tuple[str, ...] | None = None) -> str:
    """What a command says of itself, and the choices of these groups, or of all that a run has."""
    names = groups or tuple(
        sorted(
            {folder.name for place in plugins.conf_folders() for folder in place.iterdir() if folder.is_dir()}
            - {*_OTHERS}
        )
    )
    choices = [(name, sorted(choice for choice in plugins.files(name) if choice != "base")) for name in names]
    listed = [f"  {name}: {', '.join(own)}" for name, own in choices if own]
    parts = [
        about.strip(),
        "Choices, as GROUP=NAME (experiment as +experiment=NAME):"
        if "experiment" in names
        else "Choices, as GROUP=NAME:",
        "\n".join(listed),
    ]
    parts += [
        "Any key is set by its name, as gamma=0.5; docs/keys.md has them all, python -m … --cfg job their values."
    ]
    return "\n\n".join(parts)
