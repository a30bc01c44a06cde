"""Installation of nad_jax: `pip install -e .`, with the extras below."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSIONS = Path(__file__).with_name("nad_jax").joinpath("versions.py").read_text(encoding="utf-8")

setup(
    name="nad_jax",
    version=re.search(r'^__version__ = "(.+?)"', VERSIONS, re.MULTILINE)[1],
    description="Neural anisotropy directions: the directional inductive bias of neural networks, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nad_jax", "nad_jax.*"]),
    package_data={"nad_jax": ["py.typed"]},
    entry_points={"console_scripts": ["nad_jax = nad_jax.__main__:main"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "jaxlib>=0.10",
        "flax>=0.12",
        "optax",
        "numpy",
        "matplotlib",
        "ml-collections",
        "absl-py",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "scipy",
            "ruff",
            "pandas",
            "setuptools",
            # The published schemas of Kubernetes and of JobSet.
            "kubernetes-validate>=1.34",
            "kubeflow-trainer-api>=2",
            "pydantic>=2.12",
        ],
        "docs": ["sphinx>=9.0,<10", "myst-parser>=5.0,<6", "furo>=2025.9,<2027"],
        "benchmark": ["torch"],
        "cuda": ["jax[cuda13]"],  # which JAX recommends: drivers from 580
        "tpu": ["jax[tpu]"],  # also to compile for TPUs that are not there
    },
)
