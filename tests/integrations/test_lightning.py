"""Phase-wise averaging in a real Lightning Trainer equals the plain loop."""

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
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Lightning's advice on workers and loggers
]

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.strategies import FSDPStrategy  # noqa: E402

from phaseavg.integrations.lightning import PhasewiseAveraging  # noqa: E402
from phaseavg.optim import Lookahead  # noqa: E402


class Module(lightning.LightningModule):
    """The network of the plain loop; it notes the loss that each validation sees."""

    def __init__(self, interval: str = "epoch") -> None:
        super().__init__()
        self.network, self.interval = network(), interval
        self.validated: list[float] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            self.validated.append(evaluated(self.network))
        self.log("loss", self.validated[-1], batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = optimizer_and_scheduler(self.network)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.interval},
        }


def loader() -> DataLoader:
    return DataLoader(batches(), batch_size=None)


def trainer(
    folder: Path, *callbacks: Any, max_epochs: int | None = sum(EPOCHS), **options: Any
) -> Any:
    return lightning.Trainer(
        **options,
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
    )


@pytest.mark.parametrize("epochs", [EPOCHS, None], ids=["given", "from the scheduler"])
def test_weights_and_validations_are_those_of_the_plain_loop(
    epochs: list[int] | None, tmp_path: Path
) -> None:
    module, callback, plain = Module(), PhasewiseAveraging(epochs), network()
    losses, averager = plain_loop(plain)
    trainer(tmp_path, callback).fit(module, loader(), loader())
    assert module.validated == losses
    for a, b in zip(module.network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert callback.averager.lengths == averager.lengths == EPOCHS
    callback.averager.finish()


@pytest.mark.parametrize("at_train_end", [True, False], ids=["after the epoch", "after validation"])
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_training_ends_bit_identical(
    cut: int, at_train_end: bool, tmp_path: Path
) -> None:
    whole = Module()
    trainer(tmp_path, PhasewiseAveraging()).fit(whole, loader(), loader())
    saving = ModelCheckpoint(tmp_path, filename="cut", save_on_train_epoch_end=at_train_end)
    cut_off = trainer(tmp_path, PhasewiseAveraging(EPOCHS), saving, max_epochs=cut)
    with pytest.warns(UserWarning, match=f"training ended after {cut} of the 5 epochs"):
        cut_off.fit(Module(), loader(), loader())
    resumed = Module()
    again = trainer(tmp_path, PhasewiseAveraging())
    again.fit(resumed, loader(), loader(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert equal(whole, resumed)


def test_a_second_fit_continues_the_average(tmp_path: Path) -> None:
    module, saving = Module(), ModelCheckpoint(tmp_path, filename="cut")
    trainer(tmp_path, PhasewiseAveraging(EPOCHS), saving, max_epochs=1).fit(module, loader())
    callback = PhasewiseAveraging(EPOCHS)
    again = trainer(tmp_path, callback, max_epochs=2)
    again.fit(module, loader(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert callback.averager.ended == 2
    again.fit_loop.max_epochs = sum(EPOCHS)
    again.fit(module, loader())
    assert callback.averager.remaining == 0


def test_batches_have_the_trainings_precision_and_may_come_from_several_loaders(
    tmp_path: Path,
) -> None:
    class Two(Module):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return super().training_step(batch["first"], index)

    def forward(module: Any, batch: Any) -> None:
        assert batch["second"][0].dtype == torch.float64
        module(batch["first"][0])

    module, plain = Two().double(), network().double()
    callback = PhasewiseAveraging(EPOCHS, forward=forward)
    loaders = {"first": loader(), "second": loader()}
    trainer(tmp_path, callback, precision="64-true").fit(module, loaders)
    plain_loop(plain, torch.float64)
    assert equal(module.network, plain)


def test_the_pass_reads_the_batches_that_an_epoch_trains_on(tmp_path: Path) -> None:
    """Of an endless loader as many, and prepared by the module's hooks."""

    class Prepared(Module):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] / 100, batch[1]

    def forward(module: Any, batch: Any) -> None:
        seen.append(batch[0])
        module(batch[0])

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return ((100 * inputs, labels) for inputs, labels in cycle(batches()))

    seen: list[torch.Tensor] = []
    module, plain = Prepared(), network()
    callback = PhasewiseAveraging(EPOCHS, forward=forward)
    endless = DataLoader(Endless(), batch_size=None)
    trainer(tmp_path, callback, limit_train_batches=3).fit(module, endless)
    plain_loop(plain)
    assert len(seen) == 1 + 3 * len(EPOCHS)  # a trial before training
    for a, b in zip(module.network.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_module_without_forward_is_refused_before_training(tmp_path: Path) -> None:
    class Bare(lightning.LightningModule):
        configure_optimizers = Module.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.network, self.interval = network(), "epoch"

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return cross_entropy(self.network(batch[0]), batch[1])

    with pytest.raises(ValueError, match="forward=None: the module has no forward"):
        trainer(tmp_path, PhasewiseAveraging(EPOCHS)).fit(Bare(), loader())
    module, plain = Bare(), network()
    forward = lambda module, batch: module.network(batch[0])  # noqa: E731
    trainer(tmp_path, PhasewiseAveraging(EPOCHS, forward=forward)).fit(module, loader())
    plain_loop(plain)
    assert equal(module.network, plain)


def test_batches_that_need_forward_are_refused_before_training(tmp_path: Path) -> None:
    class Named(Module):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return super().training_step((batch["inputs"], batch["labels"]), index)

    data = DataLoader([{"inputs": x, "labels": y} for x, y in batches()], batch_size=None)
    module = Named()
    with pytest.raises(TypeError, match=r"a dict is neither .*; pass forward="):
        trainer(tmp_path, PhasewiseAveraging(EPOCHS)).fit(module, data)
    assert equal(module.network, network())


def test_an_epoch_that_ends_early_counts_unless_the_training_is_cut(tmp_path: Path) -> None:
    class Skipping(Module):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module, plain, callback = Skipping(), network(), PhasewiseAveraging(EPOCHS)
    trainer(tmp_path, callback).fit(module, loader())
    plain_loop(plain, count=2)
    for a, b in zip(module.network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert callback.averager.remaining == 0

    trainer(tmp_path, callback := PhasewiseAveraging(EPOCHS), max_steps=8).fit(Module(), loader())
    assert callback.averager.ended == 2


def test_lookahead_is_refused(tmp_path: Path) -> None:
    class Looking(Module):
        def configure_optimizers(self) -> Any:
            return Lookahead(torch.optim.SGD(self.parameters(), lr=0.1))

    with pytest.raises(ValueError, match=r"optimizer=Lookahead: .* fast weights"):
        trainer(tmp_path, PhasewiseAveraging(EPOCHS)).fit(Looking(), loader())


@pytest.mark.parametrize("epochs", [EPOCHS, None], ids=["given", "from the scheduler"])
def test_a_checkpoint_without_an_average_is_refused(
    epochs: list[int] | None, tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path, filename="cut")
    trainer(tmp_path, saving, max_epochs=1).fit(Module(), loader())
    with pytest.raises(ValueError, match="after 1 epochs has no state of PhasewiseAveraging"):
        trainer(tmp_path, PhasewiseAveraging(epochs)).fit(
            Module(), loader(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True
        )


def test_a_sharded_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy=FSDPStrategy: .* the whole network"):
        PhasewiseAveraging(EPOCHS).on_train_start(SimpleNamespace(strategy=FSDPStrategy()), None)


def test_more_epochs_than_phases_are_refused_before_training(tmp_path: Path) -> None:
    for max_epochs, named in ((6, "max_epochs=6"), (-1, "max_epochs=-1")):
        module = Module()
        with pytest.raises(ValueError, match=rf"{named}: must be 0 to 5"):
            trainer(tmp_path, PhasewiseAveraging(EPOCHS), max_epochs=max_epochs).fit(
                module, loader()
            )
        assert equal(module.network, network())


def test_a_scheduler_that_steps_per_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="once per epoch; pass epochs"):
        trainer(tmp_path, PhasewiseAveraging()).fit(Module("step"), loader())


@pytest.mark.parametrize("page", ["README.md", "docs/averager.md"])
def test_the_documented_lines_make_a_trainer(page: str) -> None:
    code = documented_lines(page, "lightning")
    names: dict[str, Any] = {"lightning": lightning}
    exec(code, names)
    assert any(isinstance(c, PhasewiseAveraging) for c in names["trainer"].callbacks)
