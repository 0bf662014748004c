"""Averages and statistics of several processes equal those of a single process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from phaseavg.averaging import Phasewise, Uniform, recompute_batchnorm
from phaseavg.optim import Lookahead

pytestmark = pytest.mark.slow

RANKS, EPOCHS, PER_RANK = 2, [3, 2], 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def rank_batches(rank):
    """Return a rank's batches for the BatchNorm pass; ranks have different numbers of images."""
    generator = torch.Generator().manual_seed(rank)
    sizes = [PER_RANK, PER_RANK - 3 * rank]
    return [torch.randn(n, 3, 8, 8, generator=generator) * (1 + rank) + rank for n in sizes]


def train(wrap, batches):
    """Train for two phases; return the model states at phase ends and between them."""
    model = network()
    wrapped = wrap(model)
    optimizer = Lookahead(torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9), k=2)
    averager = Phasewise(wrapped, EPOCHS, Uniform())
    ends = []
    for epoch in range(sum(EPOCHS)):
        torch.manual_seed(epoch)
        wrapped.train()
        optimizer.zero_grad()
        images, labels = torch.randn(4, 3, 8, 8), torch.randint(5, (4,))  # the same on each rank
        nn.functional.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
        with torch.no_grad():  # after an evaluation, fully_shard leaves its root whole
            wrapped.eval()(images)
        wrapped.train()
        if averager.epoch_end(wrapped):
            recompute_batchnorm(wrapped, batches)
            ends.append(gather_state(wrapped))
    saved = averager.state_dict()
    averager = Phasewise(wrapped, EPOCHS, Uniform())
    averager.load_state_dict(saved)
    averager.copy_to(wrapped)
    ends.append(gather_state(wrapped))
    if (shard := saved["average"]["shard"]) is not None:
        saved["average"]["shard"] = 1 - shard
        with pytest.raises(ValueError, match=rf"shards of process {1 - shard}, not {shard}"):
            averager.load_state_dict(saved)
    return ends


def gather_state(model):
    """Return a model's state as lists, with sharded tensors gathered."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        tensors[name.removeprefix("module.")] = full.double().tolist()
    return tensors


def fully_sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in (model[0], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": fully_sharded}


def main(wrapper, rank, folder):
    """Run a rank and write its result to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    ends = train(WRAPPERS[wrapper], rank_batches(rank))
    torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(ends))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_all_ranks_match_a_single_process(tmp_path, wrapper):
    code = f"import test_distributed as t; t.main({wrapper!r}, int({{}}), {str(tmp_path)!r})"
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "averaging")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    first, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS))
    assert first == other
    expected = train(lambda model: model, rank_batches(0) + rank_batches(1))
    assert len(first) == len(expected) == 3
    for actual, state in zip(first, expected, strict=True):
        assert actual.keys() == state.keys()
        for name, values in state.items():
            if name.endswith("num_batches_tracked"):
                continue
            torch.testing.assert_close(
                torch.tensor(actual[name]), torch.tensor(values), rtol=1e-5, atol=1e-6
            )
