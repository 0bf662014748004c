"""Phase-wise averaging in Lightning, with the network and data of plain_torch.py (30 seconds).

    python examples/in_lightning.py

Needs the extra `lightning` and scikit-learn. Prints the test error at each phase end and one epoch
before.
"""

import warnings

import lightning
import torch
from plain_torch import BATCH, EPOCHS, RATES, data, error, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from phaseavg.integrations.lightning import PhasewiseAveraging


class Digits(lightning.LightningModule):
    """A digit classifier, trained with SGD and a stepwise learning rate."""

    def __init__(self, test: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.network, self.test = network(), test
        self.errors: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, 10) of images (N, 1, 8, 8)."""
        return self.network(images)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        return cross_entropy(self(batch[0]), batch[1])

    def on_train_epoch_end(self) -> None:
        """Record the test error (%); at a phase end it is the error of the average."""
        self.errors.append(error(self.network, *self.test))

    def configure_optimizers(self) -> tuple[list, list]:
        """Return SGD and a scheduler that lowers the learning rate after 20 and 30 epochs."""
        optimizer = torch.optim.SGD(self.parameters(), RATES[0], momentum=0.9, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30])]


def main(seed: int = 0) -> list[float]:
    """Train; return the test error (%) after every epoch."""
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    lightning.seed_everything(seed)
    images, labels, *test = data(seed)
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True)
    module = Digits(tuple(test))
    trainer = lightning.Trainer(
        max_epochs=sum(EPOCHS),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[PhasewiseAveraging(EPOCHS)],
    )
    trainer.fit(module, loader)
    for end in (20, 30, 40):
        before, average = module.errors[end - 2 : end]
        print(f"epoch {end}: {average:.2f} %, the epoch before {before:.2f} %")
    return module.errors


if __name__ == "__main__":
    main()
