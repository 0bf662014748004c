"""Phase-wise averaging in Hugging Face's real Trainer equals the plain loop."""

from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
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

from phaseavg.averaging import Phasewise, recompute_batchnorm

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from accelerate.utils import DistributedType  # noqa: E402

from phaseavg.integrations.transformers import PhasewiseCallback  # noqa: E402
from phaseavg.optim import Lookahead  # noqa: E402

NOT_SAVED = {"eval_strategy": "no", "save_strategy": "no"}


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


class Stream(torch.utils.data.IterableDataset):
    """Samples without a length."""

    def __iter__(self) -> Any:
        return iter(samples())


def samples() -> list[dict[str, Tensor]]:
    """Return the images of the plain loop's batches."""
    return [
        {"inputs": x, "labels": y}
        for inputs, labels in batches()
        for x, y in zip(inputs, labels, strict=True)
    ]


def trained(folder: Path, *callbacks: Any, **arguments: Any) -> Model:
    """Return the model after training; `resume` is what `train` resumes from.

    `data` replaces the images, `lookahead` wraps the optimizer.
    """
    resume, data = arguments.pop("resume", None), arguments.pop("data", None)
    model = Model()
    optimizer, _ = optimizer_and_scheduler(model)
    if arguments.pop("lookahead", False):
        optimizer = Lookahead(optimizer)
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
        train_dataset=samples() if data is None else data,
        eval_dataset=samples(),
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
    shuffled = {"train_sampling_strategy": "random"}
    whole = trained(tmp_path / "whole", PhasewiseCallback(), **shuffled)
    trained(tmp_path / "cut", PhasewiseCallback(), StopAfter(step), **shuffled)
    assert (tmp_path / f"cut/checkpoint-{step}/phasewise.pt").is_file()
    resumed = trained(tmp_path / "cut", PhasewiseCallback(), resume=True, **shuffled)
    assert equal(whole, resumed)


@pytest.mark.parametrize(
    ("lengths", "every_steps", "accumulated"), [([4, 3], 2, 1), ([3, 2], 3, 2), ([3, 2], None, 2)]
)
def test_updates_are_averaged_inside_epochs_and_with_accumulated_gradients(
    lengths: list[int], every_steps: int | None, accumulated: int, tmp_path: Path
) -> None:
    """An epoch has three batches; the first two rows end their phases inside epochs."""
    interval = every_steps or 2  # updates of an epoch with two batches each
    total = sum(lengths) * interval
    model = trained(
        tmp_path,
        PhasewiseCallback(lengths, every_steps=every_steps),
        max_steps=total,
        gradient_accumulation_steps=accumulated,
        **NOT_SAVED,
    )
    plain = network()
    optimizer, _ = optimizer_and_scheduler(plain)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [9])  # as in `trained`
    averager = Phasewise(plain, lengths)
    epoch = [batches()[i : i + accumulated] for i in range(0, 3, accumulated)]
    for update, group in zip(range(1, total + 1), cycle(epoch), strict=False):
        plain.train()
        for inputs, labels in group:
            (cross_entropy(plain(inputs), labels) / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if update % interval == 0 and averager.epoch_end(plain):
            recompute_batchnorm(plain, batches())
    averager.finish()
    assert equal(model.network, plain)


def test_a_pass_over_a_stream_reads_one_interval(tmp_path: Path) -> None:
    class Endless(Stream):
        def __iter__(self) -> Any:
            return cycle(samples())

    def forward(model: Model, batch: Any) -> None:
        seen.append(len(batch["labels"]))
        model(**batch)

    seen: list[int] = []
    callback = PhasewiseCallback(EPOCHS, every_steps=2, forward=forward)
    options = {"max_steps": 2 * sum(EPOCHS), "gradient_accumulation_steps": 2}
    trained(tmp_path, callback, data=Endless(), **NOT_SAVED, **options)
    assert seen == [8] * 4 * len(EPOCHS)


def test_frozen_weights_are_not_averaged(tmp_path: Path) -> None:
    class Freeze(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, model: Model, **others: Any) -> None:
            model.network[0].requires_grad_(False)

    callback = PhasewiseCallback(EPOCHS, trainable_only=True)
    model = trained(tmp_path, Freeze(), callback, **NOT_SAVED)
    assert torch.equal(model.network[0].weight, network()[0].weight)
    assert len(callback.averager.average.tensors) == len(list(model.parameters())) - 2


def test_a_training_longer_than_the_phases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs=\[3, 1\]: the training has 15 updates.* 12"):
        trained(tmp_path, PhasewiseCallback([3, 1]))
    with pytest.raises(ValueError, match=r"phases of \[9, 6\] updates must be multiples of 2"):
        trained(tmp_path, PhasewiseCallback(every_steps=2))


@pytest.mark.parametrize(
    ("callback", "arguments", "message"),
    [
        (PhasewiseCallback([3, 2]), {"data": Stream(), "max_steps": 15}, "has no length; pass"),
        (
            PhasewiseCallback([3, 2], every_steps=3),
            {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
            "dataloader_persistent_workers=True: .* use every_steps=None",
        ),
        (PhasewiseCallback([3, 2]), {"lookahead": True}, "optimizer=Lookahead: .* fast weights"),
    ],
)
def test_trainings_that_cannot_be_averaged_are_refused(
    callback: PhasewiseCallback, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, callback, **arguments)


def test_a_network_that_needs_forward_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loss(self: Any, model: Model, batch: dict[str, Tensor], **others: Any) -> Tensor:
        return model(batch["inputs"], batch["labels"])["loss"]

    forward = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, x, labels: forward(self, x, labels))
    monkeypatch.setattr(transformers.Trainer, "compute_loss", loss)
    with pytest.raises(TypeError, match=r"forward=None: model\(\*\*batch\) fails .* pass forward="):
        trained(tmp_path, PhasewiseCallback(EPOCHS), max_steps=1, remove_unused_columns=False)


def test_a_sharded_network_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr("phaseavg.integrations.transformers.AcceleratorState", lambda: sharded)
    with pytest.raises(ValueError, match=r"distributed_type=FSDP: .* the whole network"):
        trained(tmp_path, PhasewiseCallback(EPOCHS))


def test_a_training_that_ends_inside_a_phase_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ended after 4 of the 5 epochs of the phases"):
        trained(tmp_path, PhasewiseCallback(EPOCHS), StopAfter(12))


def test_a_checkpoint_in_another_folder_is_resumed_with_its_own_average(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", PhasewiseCallback())
    trained(tmp_path / "other", PhasewiseCallback(), StopAfter(7))
    trained(tmp_path / "cut", PhasewiseCallback(), StopAfter(7))
    checkpoint = str(tmp_path / "cut/checkpoint-7")
    for folder in ("new", "other"):
        message = r"is another training's, .* set it in TrainingArguments\(resume_from_checkpoint"
        with pytest.raises(ValueError, match=message):
            trained(tmp_path / folder, PhasewiseCallback(), resume=checkpoint)
        resumed = trained(
            tmp_path / folder,
            PhasewiseCallback(),
            resume=checkpoint,
            resume_from_checkpoint=checkpoint,
        )
        assert equal(whole, resumed)


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
