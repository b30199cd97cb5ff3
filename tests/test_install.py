"""The environment itself: a stray package here breaks transformers for everyone (docs/architecture.md)."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

INSTALLED = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}


def test_pip_check_is_clean() -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not part of this environment")
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_that_breaks_transformers_is_installed_beside_a_cpu_torch() -> None:
    torch = importlib.metadata.version("torch")
    if not torch.endswith("+cpu"):
        pytest.skip(f"torch {torch} is not the CPU build; torchaudio and torchvision may work beside it")
    assert not INSTALLED & {"torchaudio", "torchvision", "timm"}


def test_cpu_wheel_brings_no_cuda_packages() -> None:
    torch = importlib.metadata.version("torch")
    if not torch.endswith("+cpu"):
        pytest.skip(f"torch {torch} is the build that the package index offers here")
    assert not {name for name in INSTALLED if name.startswith(("nvidia-", "cuda-", "triton"))}
