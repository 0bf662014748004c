"""The averager in a loop of timm's parts, as in timm's train.py, equals the plain loop."""

import pytest
import torch
from integrations.loops import DROPS, EPOCHS, LR, batches, evaluated, network, plain_loop
from torch.nn.functional import cross_entropy

from phaseavg.averaging import Phasewise, recompute_batchnorm

timm_optim = pytest.importorskip("timm.optim")
timm_scheduler = pytest.importorskip("timm.scheduler")
pytestmark = pytest.mark.slow


def test_a_loop_with_timms_optimizer_and_scheduler_equals_the_plain_loop() -> None:
    expected, model = network(), network()
    losses, _ = plain_loop(expected)
    optimizer = timm_optim.create_optimizer_v2(model, opt="momentum", lr=LR, momentum=0.9)
    scheduler = timm_scheduler.MultiStepLRScheduler(optimizer, [DROPS[0] + 1], decay_rate=0.1)
    averager = Phasewise(model, EPOCHS)
    actual = []
    for epoch in range(sum(EPOCHS)):
        model.train()
        for inputs, labels in batches():
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        if averager.epoch_end(model):
            recompute_batchnorm(model, batches())
        actual.append(evaluated(model))
        scheduler.step(epoch + 1)
    assert actual == pytest.approx(losses, rel=1e-6)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
