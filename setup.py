"""Puts the recipes of `configs/` into a built package, as `flaxseg/configs`.

In pyproject.toml, as a package-dir, they would also be part of an editable install, which would
then be an import hook behind all other finders: in a folder that holds a clone named flaxseg,
`import flaxseg` would find that clone's own folder, an empty namespace, before it.
"""

import setuptools
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Takes the recipes along, but not for an editable install, which reads them in the clone."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.packages = [*self.packages, "flaxseg.configs"]
            self.package_dir = {**self.package_dir, "flaxseg.configs": "configs"}


setuptools.setup(cmdclass={"build_py": BuildWithRecipes})
