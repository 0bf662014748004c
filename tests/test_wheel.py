"""The wheel's content; its averagers and optimizers need only torch."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

BUILD = "from setuptools.build_meta import build_wheel; build_wheel('.')"

WITH_TORCH_ALONE = '''
"""Imports each public name, and trains, where no extra of the wheel can be imported."""

import json
import sys

wheel, extras, scratch = json.loads(sys.argv[1])
sys.path.insert(0, wheel)
sys.modules.update(dict.fromkeys(extras))  # None: an import fails

import torch
from torch import nn

import phaseavg
from phaseavg import averaging, optim

assert phaseavg.__file__.startswith(wheel), phaseavg.__file__
for package in (averaging, optim):
    for name in package.__all__:
        getattr(package, name)

from phaseavg.averaging import RNA, Phasewise, recompute_batchnorm
from phaseavg.optim import AdaBound, Lookahead

batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
averager = Phasewise(model, epochs=[2, 1], weights=RNA(scratch))
optimizer = Lookahead(AdaBound(model.parameters()), k=2)
for _ in range(3):
    for inputs, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    if averager.epoch_end(model):
        recompute_batchnorm(model, batches)

print("trained with torch alone")
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this checkout, unpacked as an installer does it."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in ("phaseavg", "hydra_plugins"):  # copied: setuptools writes into its source
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=leave_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = source.glob("phaseavg-*-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target)
    return target


def requirements(wheel: Path) -> tuple[set[str], set[str]]:
    """Return the distributions that the wheel always requires, and those of its extras."""
    (metadata,) = wheel.glob("phaseavg-*.dist-info")
    lines = [Requirement(line) for line in PathDistribution(metadata).requires or []]
    needed = [line for line in lines if not line.marker or line.marker.evaluate({"extra": ""})]
    always, known = ({canonicalize_name(line.name) for line in some} for some in (needed, lines))
    return always, known - always - {"phaseavg"}


def test_without_extras_the_wheel_requires_only_torch(wheel: Path) -> None:
    assert requirements(wheel)[0] == {"torch"}


def test_averagers_and_optimizers_need_only_torch(wheel: Path, tmp_path: Path) -> None:
    _, names = requirements(wheel)
    extras = [
        module
        for module, owners in packages_distributions().items()
        if names & set(map(canonicalize_name, owners))
    ]
    assert {"numpy", "hydra", "pandas", "timm", "torchvision", "yaml"} <= set(extras)
    program = tmp_path / "program.py"
    program.write_text(WITH_TORCH_ALONE)
    given = json.dumps([str(wheel), extras, str(tmp_path / "snapshots")])
    done = subprocess.run(
        [sys.executable, "-I", program, given], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "trained with torch alone\n"), done.stderr


def test_the_wheel_contains_types_templates_and_hydra_plugins(wheel: Path) -> None:
    assert (wheel / "phaseavg" / "py.typed").is_file()
    for folder in ("phaseavg/report/templates", "hydra_plugins"):
        files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.*")}
        expected = {path for path in files if "__pycache__" not in path.parts}
        assert expected
        assert all((wheel / path).is_file() for path in expected)
    assert not (wheel / "tests").exists()
