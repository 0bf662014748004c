"""What README tells people to type works as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from conftest import REPOSITORY
from torch import nn

README = (REPOSITORY / "README.md").read_text()


def test_a_network_a_data_set_and_an_averaging_of_ones_own(tmp_path: Path) -> None:
    """Each a file and a YAML outside of the package, as README shows them, by README's command."""
    blocks = re.findall(r"```(?:python|yaml)\n(# mine/.*?)```", README, re.DOTALL)
    assert len(blocks) == 6
    for content in blocks:
        name = content.split(maxsplit=2)[1]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (command,) = re.findall(r"^PYTHONPATH=mine python train.py (.*)$", README, re.MULTILINE)
    mine = tmp_path / "mine"
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
    assert folder.name.startswith("stripes-tiny-sgd-phasewise-seed0-")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"] == {"_target_": "tiny.Tiny", "channels": 8}
    assert config["averaging"]["weights"] == {"_target_": "linear.Linear"}
    result = json.loads((folder / "result.json").read_text())
    assert result["test_error"] < 25  # of 50 by chance
    assert [phase["replaced"] for phase in result["phases"]] == [True, True, True]


def test_the_averager_in_a_loop_of_ones_own() -> None:
    (code,) = re.findall(r"```python\n(from .*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    ended = []

    def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        ended.append(model[0].weight.detach().clone())

    names = {
        "model": model,
        "optimizer": optimizer,
        "train_one_epoch": train_one_epoch,
        "train_batches": batches,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120]),
    }
    exec(code, names)
    assert len(ended) == 160
    gamma = 0.9 ** (80 / 40)
    last = ended[120:]
    weights = [(1 - gamma) * gamma ** (39 - t) / (1 - gamma**40) for t in range(40)]
    expected = sum(weight * theta.double() for weight, theta in zip(weights, last, strict=True))
    assert torch.allclose(model[0].weight.double(), expected, rtol=1e-5)
    assert not torch.equal(model[0].weight, last[-1])
    assert torch.allclose(model[1].running_mean, model[0](batches[0][0]).mean(0), atol=1e-5)
