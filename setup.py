"""Package layout: `overlay/` installs inside nnU-Net's trainer folder."""

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
    name="nnunet-autosam2",
    version="0.1.0",
    description="SAM2 in 3D medical image segmentation: an nnU-Net v2 trainer plugin",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["nnunet_autosam2", "nnunet_autosam2.*"]), OVERLAY],
    package_data={"nnunet_autosam2": ["py.typed"], "nnunet_autosam2.report": ["templates/*"]},
    package_dir={OVERLAY: "overlay"},
    install_requires=[
        "nnunetv2>=2.8,<3",
        "torch>=2.10,<3",
        "sam2>=1.1,<2",
        "dynamic-network-architectures>=0.4.4,<0.5",
        "batchgenerators>=0.25.1,<0.26",
        "SimpleITK>=2.3,<3",
        "nibabel>=5.2,<6",
        "huggingface-hub>=0.30,<3",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "peft>=0.18,<1",
        "click>=8.2,<9",
        "jinja2>=3.1,<4",
        "markupsafe>=2.1,<4",
        "matplotlib>=3.10,<4",
        "monai>=1.5.1,<2",
        "numpy>=1.26,<3",
        "pydantic>=2.7,<3",
        "scipy>=1.15,<2",
        "submitit>=1.5.4,<2",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "evaluation": ["brats-evaluation>=0.0.10,<0.1"],
        "test": [
            "nnunet-autosam2[evaluation]",
            "pytest>=8,<10",
            "hypothesis>=6.100,<7",
            "playwright>=1.49,<2",
            "ruff>=0.14,<1",
            "mypy>=1.18,<3",
            "setuptools>=77",
            "statsmodels>=0.14,<1",
        ],
    },
    entry_points={"console_scripts": ["autosam2=nnunet_autosam2.cli.main:main"]},
)
