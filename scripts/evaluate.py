"""Test the final weights of a run that kept them (save_weights=true): `evaluate.py RUN`."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError

from phaseavg.cli import script
from phaseavg.config import check_record
from phaseavg.errors import UserError, told
from phaseavg.runs.record import read_config
from phaseavg.runs.weights import about, read
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
    try:
        with safetensors.safe_open(folder / "weights.safetensors", "pt") as file:
            owner = about(file).get("run_id", settings.run_id)  # older files lack it
            if owner != settings.run_id:
                raise UserError(f"{folder}/weights.safetensors: is of another run, {owner}")
            model.load_state_dict(read(file))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}/weights.safetensors: damaged, or another network's ({reason})"
        ) from error
    with torch.inference_mode(), autocast(data.device, settings.execution.precision):
        return evaluate(model, data.test_batches())


@script
def main() -> int:
    """Print loss and error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--device", default="auto", help="as execution.device of train.py")
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module of your own that the record names, such as that of its network; repeatable",
    )
    given = parser.parse_args()
    found = evaluate_run(given.run, given.data_dir, given.device, given.allow)
    print(f"test loss {found.loss:.6f}  test error {found.error:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
