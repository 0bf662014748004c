"""The averager in a loop with accelerate equals the plain loop; a resume is bit-identical."""

from pathlib import Path

import pytest
from integrations.loops import (
    EPOCHS,
    batches,
    equal,
    evaluated,
    network,
    optimizer_and_scheduler,
    plain_loop,
)
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from phaseavg.averaging import Phasewise, recompute_batchnorm

accelerate = pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def trained(folder: Path, first: int, last: int) -> tuple[nn.Module, list[float]]:
    """Train epochs `first` to `last` − 1, from the state in a folder unless `first` is 0.

    Returns:
        The model, and its loss after each of these epochs, in eval mode.
    """
    accelerator = accelerate.Accelerator(cpu=True)
    inner = network()
    optimizer, scheduler = optimizer_and_scheduler(inner)
    loader = DataLoader(batches(), batch_size=None)
    model, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
    averager = Phasewise(model, EPOCHS)
    accelerator.register_for_checkpointing(averager, scheduler)
    if first:
        accelerator.load_state(str(folder))
    losses = []
    for _ in range(first, last):
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(model(inputs), labels))
            optimizer.step()
        if averager.epoch_end(model):
            recompute_batchnorm(model, loader)
        scheduler.step()
        losses.append(evaluated(inner))
    accelerator.save_state(str(folder))
    return inner, losses


def test_a_loop_with_accelerate_resumed_inside_a_phase_equals_the_plain_loop(
    tmp_path: Path,
) -> None:
    expected = network()
    losses, _ = plain_loop(expected)
    _, first = trained(tmp_path, 0, 2)  # the first phase has three epochs
    resumed, later = trained(tmp_path, 2, sum(EPOCHS))
    assert equal(resumed, expected)
    assert first + later == losses
