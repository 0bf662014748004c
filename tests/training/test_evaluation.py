"""Evaluation has no side effects and counts each image once."""

import torch
from conftest import assert_same_weights, needs_gpu
from torch import nn
from torch.nn.functional import cross_entropy

from phaseavg.averaging import Phasewise
from phaseavg.training.evaluation import evaluate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(50, 4, generator=random), torch.randint(0, 3, (50,), generator=random)


def test_loss_and_error_do_not_depend_on_the_batch_size() -> None:
    model, (images, labels) = network().eval(), data()
    logits = model.double()(images.double())
    expected_loss = cross_entropy(logits, labels).item()
    expected_error = 100 * (logits.argmax(1) != labels).double().mean().item()
    model.float()
    for size in (50, 7, 1):
        batches = zip(images.split(size), labels.split(size), strict=True)
        actual = evaluate(model, batches)
        assert abs(actual.loss - expected_loss) < 1e-6
        assert abs(actual.error - expected_error) < 1e-9


def test_evaluation_changes_no_weights_statistics_mode_or_random_state() -> None:
    model = network()
    for training in (True, False):
        model.train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        random_state = torch.get_rng_state()
        evaluate(model, [data()])
        assert model.training is training
        assert torch.equal(torch.get_rng_state(), random_state)
        assert_same_weights(model.state_dict(), before)


@needs_gpu
def test_evaluating_an_average_allocates_one_replica_and_frees_it() -> None:
    model = nn.Sequential(nn.Linear(1024, 1024), nn.BatchNorm1d(1024)).cuda()
    averager = Phasewise(model, [2])
    averager.epoch_end(model)
    images = torch.randn(8, 1024, device="cuda")
    model(images)  # lets cuBLAS allocate its workspace
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    copy = averager.averaged(model, [images])
    evaluate(copy, [(images, torch.zeros(8).long().cuda())])
    del copy
    assert torch.cuda.memory_allocated() == before
    grown = torch.cuda.max_memory_allocated() - before
    replica = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert replica <= grown < 2 * replica
