"""Phase-wise averaging in Hugging Face's real Trainer equals the plain loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.loops import (
    EPOCHS,
    batches,
    documented_lines,
    equal,
    evaluated,
    network,
    optimizer_and_scheduler,
    plain_loop,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phaseavg.averaging import Uniform

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from phaseavg.integrations.transformers import PhasewiseCallback  # noqa: E402


class Model(nn.Module):
    """The network of the plain loop, with the signature that a Trainer calls."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(inputs)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class StopAfter(transformers.TrainerCallback):
    """Notes the loss that each evaluation sees, and ends the training after some updates."""

    def __init__(self, steps: int | None = None) -> None:
        self.steps = steps
        self.evaluated: list[float] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Model, **others: Any) -> None:
        self.evaluated.append(evaluated(model.network))

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.steps:
            control.should_save = control.should_training_stop = True


def trained(folder: Path, *callbacks: Any, **arguments: Any) -> Model:
    """Return the model after training; `resume` is what `train` resumes from."""
    resume = arguments.pop("resume", None)
    model = Model()
    samples = [
        {"inputs": x, "labels": y}
        for inputs, labels in batches()
        for x, y in zip(inputs, labels, strict=True)
    ]
    optimizer, _ = optimizer_and_scheduler(model)
    drops = [EPOCHS[0] * len(batches())]  # the Trainer steps the scheduler after each update
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": sum(EPOCHS),
        "per_device_train_batch_size": 8,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
    }
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**defaults | arguments),
        train_dataset=samples,
        eval_dataset=samples,
        optimizers=(optimizer, scheduler),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize("epochs", [EPOCHS, None], ids=["given", "from the scheduler"])
def test_weights_and_evaluations_are_those_of_the_plain_loop(
    epochs: list[int] | None, tmp_path: Path
) -> None:
    callback, notes, plain = PhasewiseCallback(epochs), StopAfter(), network()
    losses, _ = plain_loop(plain)
    model = trained(tmp_path, callback, notes)
    assert notes.evaluated == losses
    assert equal(model.network, plain)
    assert callback.averager.lengths == EPOCHS
    callback.averager.finish()


@pytest.mark.parametrize("step", [2, 3, 7, 9, 13])
def test_a_resumed_training_ends_bit_identical(step: int, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", PhasewiseCallback())
    trained(tmp_path / "cut", PhasewiseCallback(), StopAfter(step))
    assert (tmp_path / f"cut/checkpoint-{step}/phasewise.pt").is_file()
    resumed = trained(tmp_path / "cut", PhasewiseCallback(), resume=True)
    assert equal(whole, resumed)


def test_averages_of_single_updates(tmp_path: Path) -> None:
    """Two phases of 9 and 6 updates; the average is taken after every third."""
    callback = PhasewiseCallback([3, 2], Uniform(), every_steps=3)
    model = trained(tmp_path, callback, eval_strategy="no", save_strategy="no")
    by_epoch = trained(tmp_path, PhasewiseCallback([3, 2], Uniform()))
    assert len(batches()) == 3
    assert equal(model, by_epoch)


def test_a_training_longer_than_the_phases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs=\[3, 1\]: the training has 15 updates.* 12"):
        trained(tmp_path, PhasewiseCallback([3, 1]))
    with pytest.raises(ValueError, match=r"phases of \[9, 6\] updates must be multiples of 2"):
        trained(tmp_path, PhasewiseCallback(every_steps=2))


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, StopAfter(6))
    with pytest.raises(ValueError, match=r"checkpoint-6/phasewise.pt: does not exist"):
        trained(tmp_path, PhasewiseCallback(), resume=True)


@pytest.mark.parametrize("page", ["README.md", "docs/averager.md"])
def test_the_documented_lines_make_a_trainer(tmp_path: Path, page: str) -> None:
    code = documented_lines(page, "transformers")
    arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=160, use_cpu=True)
    names = {"transformers": transformers, "model": Model(), "arguments": arguments}
    exec(code, names)
    callbacks = names["trainer"].callback_handler.callbacks
    assert any(isinstance(callback, PhasewiseCallback) for callback in callbacks)
