"""Evaluate the final weights of a run that kept them."""

from collections.abc import Iterable
from pathlib import Path

import torch

from phaseavg.config import check_record
from phaseavg.errors import UserError, told
from phaseavg.runs.record import read_config
from phaseavg.runs.weights import load_weights
from phaseavg.training.evaluation import Evaluation, evaluate
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model


def evaluate_run(
    folder: Path, data_dir: Path, device: str, allow: Iterable[str] = ()
) -> Evaluation:
    """Return test loss and error (%) of the weights in a run's folder.

    Args:
        folder: of the run, which may be a stranger's.
        data_dir: folder of the data.
        device: as execution.device.
        allow: modules that its config may name beside the project's own.

    Raises:
        UserError: if the folder holds no run, or its weights are missing or damaged.
    """
    for name, remedy in (
        ("config.yaml", "name the folder of a run"),
        ("weights.safetensors", "repeat the run with save_weights=true rerun=true"),
    ):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: there is no {name}; {remedy}")
    try:
        recorded = read_config(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/config.yaml: damaged ({told(error)}); repeat the run with rerun=true"
        ) from error
    try:
        settings = check_record({**recorded, "data_dir": data_dir}, allow)
    except UserError as error:
        raise UserError(f"{folder}/config.yaml: {error}") from error
    plain = {"device": device, "graph": False, "channels_last": False}
    here = settings.execution.model_copy(update=plain)
    settings, on = prepare(settings.model_copy(update={"execution": here}))
    data = load_data(settings, on)
    model = new_model(settings, data)
    load_weights(model, folder / "weights.safetensors", settings.run_id)
    with torch.inference_mode(), autocast(data.device, settings.execution.precision):
        return evaluate(model, data.test_batches())
