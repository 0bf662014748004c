"""The notice before a table's sweep that would take days on a CPU."""

import pytest
import torch
from conftest import TINY, Prompt, composed
from torch import Tensor, nn

from phaseavg.config import check
from phaseavg.sweep import cpu_time
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import Job


class Layers(nn.Module):
    """A 3×3 convolution of an 8×8 image to 4 channels, and a linear layer to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.convolution(images).flatten(1))


def made_jobs() -> list[Job]:
    """Return two jobs of 5 epochs, the second from a prefix of 3."""
    settings = check(composed(*TINY).copy())
    model = {"_target_": f"{__name__}.Layers"}
    run = Run([], settings.model_copy(update={"model": model}))
    return [Job(run), Job(run, start=3)]


def test_operations_are_those_counted_by_hand() -> None:
    # A product and a sum per weight and position; forward, and backward for inputs and weights.
    per_image = 3 * 2 * (64 * 4 * 9 + 4 * 64 * 10)
    assert cpu_time.training_operations(made_jobs()) == (5 + 2) * 1000 * per_image


@pytest.mark.parametrize(
    ("rate", "notice"),
    [
        (350.0, "7 epochs take roughly 7 days on this CPU (2.0e+08 operations at 3.5e+02"),
        (2e6, None),
    ],
)
def test_days_are_operations_by_the_rate(
    monkeypatch: pytest.MonkeyPatch, rate: float, notice: str | None
) -> None:
    monkeypatch.setattr(cpu_time, "operations_per_second", lambda: rate)
    said = cpu_time.cpu_notice(made_jobs())
    assert said == notice or (notice and said.startswith(notice))


def test_there_is_no_notice_on_a_gpu_or_without_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_time, "operations_per_second", lambda: 1.0)
    assert cpu_time.cpu_notice([]) is None
    monkeypatch.setattr(cpu_time, "pick_device", lambda _: torch.device("cuda"))
    assert cpu_time.cpu_notice(made_jobs()) is None


def test_a_network_that_cannot_be_counted_gives_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_time, "operations_per_second", lambda: 1.0)
    monkeypatch.setattr(Layers, "forward", lambda self, images: 1 / 0)
    assert cpu_time.cpu_notice(made_jobs()) is None


def test_a_table_says_it_before_its_first_run(
    prompt: Prompt, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_time, "operations_per_second", lambda: 1.0)
    command = ("--config-dir", mine, "-m", *TINY, "schedule.epochs=[1,1,1]", "table=tiny", "seed=0")
    status, out, _ = prompt(*command)
    lines = out.splitlines()
    (position,) = [n for n, line in enumerate(lines) if "days on this CPU" in line]
    assert lines[position].startswith("5 epochs take roughly ")
    assert lines[position + 1].startswith("prefix 1 of 1")
    assert status == 0
