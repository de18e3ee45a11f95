"""What pyproject.toml cannot say: `overlay/` installs inside nnU-Net's trainer folder."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

OVERLAY = "nnunetv2.training.nnUNetTrainer.variants.autosam2"
LINK = Path("nnunet_autosam2", "dataset_conversion")
"""In a checkout a link to the folder beside it, in a source distribution that folder itself"""

if not LINK.is_dir():
    raise SystemExit(
        f"{LINK} has to be a link to dataset_conversion/, and this checkout was made without symbolic links. Run "
        f"`git config core.symlinks true` and `git checkout -- {LINK.as_posix()}`; on Windows switch on developer mode "
        "before."
    )


class EditableWithoutOverlay(editable_wheel):
    """Leaves the overlay to `autosam2 doctor --fix`: nnU-Net looks for files, not for what an import hook knows."""

    def run(self) -> None:
        self.distribution.packages.remove(OVERLAY)
        del self.distribution.package_dir[OVERLAY]
        super().run()


setup(
    cmdclass={"editable_wheel": EditableWithoutOverlay},
    packages=[*find_packages(include=["nnunet_autosam2", "nnunet_autosam2.*"]), OVERLAY],
    package_dir={OVERLAY: "overlay"},
)
