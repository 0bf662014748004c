"""Test the final weights of a run that kept them (weights=final): `evaluate.py RUN`."""

import argparse
import sys
from pathlib import Path

import torch
import yaml
from omegaconf import OmegaConf
from safetensors import SafetensorError

from phaseavg.config import check
from phaseavg.errors import UserError
from phaseavg.runs.weights import read_weights
from phaseavg.training.evaluation import Evaluation, evaluate
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model


def evaluate_run(folder: Path, data_dir: Path, device: str) -> Evaluation:
    """Return test loss and error (%) of the weights in a run's folder.

    The network and the data are built from the recorded config, whose targets are imported: look at
    the config of a stranger's record first.

    Raises:
        UserError: if the folder holds no run, or its weights are missing or damaged.
    """
    for name, remedy in (
        ("config.yaml", "name the folder of a run"),
        ("weights.safetensors", "repeat the run with weights=final force=true"),
    ):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: there is no {name}; {remedy}")
    try:
        recorded = dict(yaml.safe_load((folder / "config.yaml").read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.yaml: damaged; repeat the run with force=true") from error
    settings = check(OmegaConf.create({**recorded, "data_dir": str(data_dir)}))
    plain = {"device": device, "graph": False, "channels_last": False}
    here = settings.execution.model_copy(update=plain)
    settings, on = prepare(settings.model_copy(update={"execution": here}))
    data = load_data(settings, on)
    model = new_model(settings, data)
    try:
        model.load_state_dict(read_weights(folder / "weights.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}/weights.safetensors: damaged, or another network's ({reason})"
        ) from error
    with torch.inference_mode(), autocast(data.device, settings.execution.precision):
        return evaluate(model, data.test_batches())


def main() -> int:
    """Print loss and error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--device", default="auto", help="as execution.device of train.py")
    arguments = parser.parse_args()
    try:
        found = evaluate_run(arguments.run, arguments.data_dir, arguments.device)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    print(f"test loss {found.loss:.6f}  test error {found.error:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
