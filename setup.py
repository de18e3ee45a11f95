"""Package layout: `dataset_conversion/` installs inside the package, `overlay/` inside nnU-Net's trainer folder."""

from pathlib import Path

from setuptools import find_packages, setup

OVERLAY = "nnunetv2.training.nnUNetTrainer.variants.autosam2"

setup(
    name="nnunet-autosam2",
    version="0.1.0",
    description="SAM2 in 3D medical image segmentation: an nnU-Net v2 trainer plugin",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=[
        *find_packages(include=["nnunet_autosam2", "nnunet_autosam2.*"]),
        "nnunet_autosam2.dataset_conversion",
        OVERLAY,
    ],
    package_dir={"nnunet_autosam2.dataset_conversion": "dataset_conversion", OVERLAY: "overlay"},
    install_requires=[
        "nnunetv2>=2.8,<3",
        "torch>=2.5,<3",
        "sam2>=1.1,<2",
        "dynamic-network-architectures>=0.4.4,<0.5",
        "batchgenerators>=0.25.1,<0.26",
        "SimpleITK>=2.3,<3",
        "nibabel>=5.2,<6",
        "huggingface-hub>=0.30,<3",
        "peft>=0.18,<1",
        "click>=8.1,<9",
        "matplotlib>=3.8,<4",
        "numpy>=1.26,<3",
        "scipy>=1.11,<2",
        "tqdm>=4.66,<5",
    ],
    extras_require={"test": ["pytest>=8,<10", "ruff>=0.14,<1", "mypy>=1.18,<3"]},
    entry_points={"console_scripts": ["autosam2=nnunet_autosam2.cli.main:main"]},
)
