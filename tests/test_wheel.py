"""The wheel's content; its averagers and optimizers need only torch."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

BUILD = "from setuptools.build_meta import build_wheel; build_wheel('.')"

WITH_TORCH_ALONE = '''
"""Imports and trains with each public name where only torch can be imported."""

import json
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

wheel, modules, folders, scratch = json.loads(sys.argv[1])


class OnlyTorch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, folders, target) if name in modules else None


sys.meta_path.append(OnlyTorch())
sys.path.append(wheel)

for name in ("numpy", "hydra", "omegaconf", "pandas", "pydantic", "timm", "torchvision"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} can be imported")

import torch
from torch import nn

import phaseavg
from phaseavg import averaging, optim

assert phaseavg.__file__.startswith(wheel), phaseavg.__file__
for package in (averaging, optim):
    for name in package.__all__:
        getattr(package, name)

from phaseavg.averaging import (
    RNA,
    AtEnd,
    Exponential,
    NoAveraging,
    Phasewise,
    Uniform,
    recompute_batchnorm,
)
from phaseavg.optim import AdaBound, Lookahead

BATCHES = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(averager_of, optimizer_of):
    """Return the epochs at whose end the average replaced the weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    averager, optimizer = averager_of(model, epochs=[2, 1]), optimizer_of(model)
    replaced = []
    for epoch in range(3):
        for inputs, labels in BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        if averager.epoch_end(model):
            replaced.append(epoch)
            recompute_batchnorm(model, BATCHES)
    return replaced


def phasewise_by(weights):
    return lambda model, epochs: Phasewise(model, epochs=epochs, weights=weights)


assert train(NoAveraging, sgd) == []
assert train(AtEnd, sgd) == [2]
for weights in (Exponential(0.9), Uniform(), RNA(scratch)):
    assert train(phasewise_by(weights), sgd) == [1, 2]
assert train(Phasewise, lambda model: Lookahead(sgd(model), k=2)) == [1, 2]
assert train(Phasewise, lambda model: AdaBound(model.parameters())) == [1, 2]

assert "numpy" not in sys.modules
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


def needed_by(requirement: Requirement, known: set[tuple[str, str]]) -> None:
    """Add an installed distribution and its requirements, with their extras, to `known`."""
    for extra in ("", *requirement.extras):
        key = (canonicalize_name(requirement.name), extra)
        if key in known:
            continue
        known.add(key)
        for line in distribution(requirement.name).requires or []:
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                needed_by(inner, known)


def modules_of(name: str) -> set[str]:
    """Return the top-level modules that a distribution installs."""
    paths = [file for file in distribution(name).files or [] if ".." not in file.parts]
    return {path.parts[0].partition(".")[0] for path in paths}


def test_averagers_and_optimizers_need_only_torch(wheel: Path, tmp_path: Path) -> None:
    known: set[tuple[str, str]] = set()
    needed_by(Requirement("torch"), known)
    names = {name for name, _ in known}
    assert "numpy" not in names
    modules = sorted(set().union(*map(modules_of, names)))
    folders = sorted({str(distribution(name).locate_file("")) for name in names})
    program = tmp_path / "program.py"
    program.write_text(WITH_TORCH_ALONE)
    given = json.dumps([str(wheel), modules, folders, str(tmp_path / "snapshots")])
    # Only the paths named here are importable, not the site packages.
    done = subprocess.run(
        [sys.executable, "-I", "-S", program, given], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "trained with torch alone\n"), done.stderr


def test_without_extras_the_wheel_requires_only_torch(wheel: Path) -> None:
    (metadata,) = wheel.glob("phaseavg-*.dist-info")
    lines = PathDistribution(metadata).requires or []
    always = [
        requirement.name
        for requirement in map(Requirement, lines)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    assert always == ["torch"]


def test_the_wheel_contains_types_templates_and_hydra_plugins(wheel: Path) -> None:
    assert (wheel / "phaseavg" / "py.typed").is_file()
    for folder in ("phaseavg/report/templates", "hydra_plugins"):
        files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.*")}
        expected = {path for path in files if "__pycache__" not in path.parts}
        assert expected
        assert all((wheel / path).is_file() for path in expected)
    assert not (wheel / "tests").exists()
