"""What pyproject.toml cannot say: `conf/` goes into the package, where `opd.config.places` finds it."""

from setuptools import find_namespace_packages, setup

code = find_namespace_packages(include=["opd*", "sweeps*", "analysis*", "hydra_plugins"])
conf = [f"opd.{folder}" for folder in find_namespace_packages(include=["conf*"])]
setup(
    packages=[*code, *conf],
    package_dir={"opd.conf": "conf"},
    package_data={
        "opd": ["model/published.yaml", "recipes/trained/*/*"],
        "analysis": ["*.jinja", "*.css", "*.js", "*.yaml"],
        **{folder: ["*.yaml"] for folder in conf},
    },
)
