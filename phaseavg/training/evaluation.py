"""Evaluate a model or the final weights of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phaseavg import processes
from phaseavg.config import Settings, check_record
from phaseavg.data import DataSet
from phaseavg.errors import UserError
from phaseavg.runs.record import read_config
from phaseavg.runs.weights import load_weights
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model


class Evaluation(NamedTuple):
    """Mean cross-entropy, error rate in % and number of images."""

    loss: float
    error: float
    images: int


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Return the mean loss and the error over all images; restores the model's mode afterwards.

    Of several processes, each evaluates its batches, and all return the same result.

    Args:
        model: a network from images (N, C, H, W) to logits (N, classes).
        batches: pairs of images and labels (N,) on the model's device.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    for images, labels in batches:
        logits = model(images).float()
        loss += cross_entropy(logits, labels, reduction="sum").double()
        wrong += (logits.argmax(1) != labels).sum()
        seen += len(labels)
    model.train(training)
    sums = processes.total(torch.stack([loss, wrong.double(), loss.new_tensor(seen)]))
    total_loss, errors, images_seen = sums.tolist()
    return Evaluation(total_loss / images_seen, 100 * errors / images_seen, int(images_seen))


def load_run(
    folder: Path, data_dir: Path, device: str, allow: Iterable[str] = ()
) -> tuple[Settings, DataSet, nn.Module]:
    """Return the settings, the data set and the initial network of a run.

    Args:
        folder: the run folder; it may be untrusted.
        data_dir: the data folder.
        device: a value of execution.device.
        allow: further modules that the run's config may name.

    Raises:
        UserError: if the folder is not a run folder.
    """
    try:
        settings = check_record({**read_config(folder), "data_dir": data_dir}, allow)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}/config.yaml: {' '.join(str(error).split())}") from error
    overrides = {"device": device, "graph": False, "channels_last": False}
    execution = settings.execution.model_copy(update=overrides)
    settings, run_device = prepare(settings.model_copy(update={"execution": execution}))
    data = load_data(settings, run_device)
    return settings, data, new_model(settings, data)


def evaluate_run(
    folder: Path, data_dir: Path, device: str, allow: Iterable[str] = ()
) -> Evaluation:
    """Evaluate the final weights of a run on its test images; the arguments are `load_run`'s.

    Raises:
        UserError: if the folder is not a run folder, or its weights are missing or damaged.
    """
    if (folder / "config.yaml").is_file() and not (folder / "weights.safetensors").is_file():
        raise UserError(
            f"{folder}: no weights.safetensors; repeat the run with save_weights=true rerun=true"
        )
    settings, data, model = load_run(folder, data_dir, device, allow)
    load_weights(model, folder / "weights.safetensors", settings.run_id)
    with torch.inference_mode(), autocast(data.device, settings.execution.precision):
        return evaluate(model, data.test_batches())
