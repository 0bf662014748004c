"""The code in README and docs runs as shown, and their links are valid."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from torch import Tensor, nn

from phaseavg.averaging import Phasewise, Uniform, recompute_batchnorm
from phaseavg.optim import Lookahead

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
OWN = (REPOSITORY / "docs/own.md").read_text()
AVERAGER = (REPOSITORY / "docs/averager.md").read_text()
README = (REPOSITORY / "README.md").read_text()
ERROR = re.compile(r"\b\d+\.\d\d ± \d+\.\d\d\b")
"""A mean and a standard deviation."""


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_the_readme_shows_the_loop_of_the_docs() -> None:
    (loop,) = re.findall(r"```python\n(from phaseavg.averaging .*?)```", README, re.DOTALL)
    assert f"```python\n{loop}```" in AVERAGER


@pytest.mark.parametrize("page", ["README.md", "docs/records.md"])
def test_the_documented_lines_read_records(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / page).read_text()
    (code,) = re.findall(r"```python\n(from phaseavg.runs.records .*?)```", text, re.DOTALL)
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, Any] = {}
    exec(code, names)
    assert {"run_id", "test_error"} <= set(names["runs"])
    assert {"run_id", "epoch"} <= set(names["metrics"])


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_shown_errors_are_published_results(page: str) -> None:
    pages = ("*/tables/*.md", "*/claims.md", "demo/*.md")
    results = [path for pattern in pages for path in (REPOSITORY / "results").glob(pattern)]
    published = {error for path in results for error in ERROR.findall(path.read_text())}
    shown = ERROR.findall((REPOSITORY / page).read_text())
    assert shown
    assert [error for error in shown if error not in published] == []


@pytest.mark.slow
def test_a_custom_network_data_set_and_averaging(tmp_path: Path) -> None:
    """Each part is a Python file and a YAML file outside the package, as on the page."""
    blocks = re.findall(r"```(?:python|yaml)\n(# mine/.*?)```", OWN, re.DOTALL)
    assert len(blocks) == 8
    for content in blocks:
        name = content.split(maxsplit=2)[1]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    mine = tmp_path / "mine"
    (sweep,) = re.findall(r"^python train.py --config-dir mine (.*)$", OWN, re.MULTILINE)
    plan = [sys.executable, "train.py", "--config-dir", str(mine), *sweep.split()]
    done = subprocess.run(plan, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\| table widths \| +2 \| +6 \| +6 \| +0 \| +240 \| +240 \|", done.stdout)

    decays = [*plan[:4], "-m", "preset=demo", "optimizer=rmsprop", "weight_decay=0.1,0.2"]
    done = subprocess.run([*decays, "plan=true"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\| total +\| +\| +2 \| +2 \|", done.stdout)  # the option has an effect

    (command,) = re.findall(r"^PYTHONPATH=mine python train.py (.*)$", OWN, re.MULTILINE)
    arguments = command.replace("--config-dir mine", f"--config-dir {mine}").split()
    arguments += [f"runs_dir={tmp_path}/runs", "tracking=none"]
    done = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(mine), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("stripes-tiny-sgd-phasewise_linear-seed0-")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"] == {"_target_": "tiny.Tiny", "channels": 8}
    assert config["averaging"]["weights"] == {"_target_": "linear.Linear"}
    result = json.loads((folder / "result.json").read_text())
    assert result["test_error"] < 25  # chance level: 50
    assert [phase["replaced"] for phase in result["phases"]] == [True, True, True]


def loop_of_ones_own() -> tuple[dict[str, Any], list[Tensor]]:
    """Return the variables that the loops use, and a list for the weights after each epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]
    ended: list[Tensor] = []

    def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        ended.append(model[0].weight.detach().clone())

    names = {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "train_one_epoch": train_one_epoch,
        "train_batches": batches,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120]),
    }
    return names, ended


def test_the_averager_in_a_custom_loop() -> None:
    (code,) = re.findall(r"```python\n(from phaseavg.averaging .*?)```", AVERAGER, re.DOTALL)
    names, ended = loop_of_ones_own()
    exec(code, names)
    assert len(ended) == 160
    model, batches = names["model"], names["train_batches"]
    gamma = 0.9 ** (80 / 40)
    last = ended[120:]
    weights = [(1 - gamma) * gamma ** (39 - t) / (1 - gamma**40) for t in range(40)]
    expected = sum(weight * theta.double() for weight, theta in zip(weights, last, strict=True))
    assert torch.allclose(model[0].weight.double(), expected, rtol=1e-5)
    assert not torch.equal(model[0].weight, last[-1])
    means = torch.stack([model[0](images).mean(0) for images, _ in batches])
    assert torch.allclose(model[1].running_mean, means.mean(0), atol=1e-5)


def test_lookahead_in_a_custom_loop() -> None:
    (code,) = re.findall(r"```python\n(from phaseavg.optim .*?)```", AVERAGER, re.DOTALL)
    names, ended = loop_of_ones_own()
    tested: list[Tensor] = []
    names["test"] = lambda model: tested.append(model[0].weight.detach().clone())
    exec(code, names)
    assert len(ended) == len(tested) == 160
    model = names["model"]
    assert torch.equal(model[0].weight, tested[-1])
    for epoch, (fast, slow) in enumerate(zip(ended, tested, strict=True), start=1):
        assert torch.equal(fast, slow) == (3 * epoch % 5 == 0), epoch
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(0.001)


def test_lookahead_with_the_averager() -> None:
    """Both continue from the average after it replaces the weights, as the page says."""
    names, ended = loop_of_ones_own()
    model, batches = names["model"], names["train_batches"]
    optimizer = Lookahead(names["optimizer"])
    averager = Phasewise(model, [2, 2], Uniform())
    weight = model[0].weight
    seen: list[Tensor] = []
    (code,) = re.findall(r"```python\n(if averager.*?)```", AVERAGER, re.DOTALL)
    names |= {"averager": averager, "optimizer": optimizer}
    names["recompute_batchnorm"] = recompute_batchnorm
    for epoch in range(4):  # of 3 steps, so that phases end within Lookahead's windows
        names["train_one_epoch"](model, optimizer, batches)
        with optimizer.evaluation_weights():
            seen.append(weight.detach().double())
            exec(code, names)
        if epoch in (1, 3):
            average = (seen[-2] + seen[-1]) / 2
            assert torch.allclose(weight.double(), average, rtol=1e-5)
            assert torch.equal(optimizer.state[weight]["slow_weights"], weight)
            assert not torch.allclose(ended[-1].double(), average, rtol=1e-3)
        else:
            assert torch.equal(weight, ended[-1])
