"""Phase-wise averaging in Hugging Face's Trainer: a small ViT on 8×8 digits (30 seconds, one core).

    python examples/in_transformers.py

Needs the extra `transformers` and scikit-learn. The scheduler defines two phases of 10 and 5
epochs. Prints the test loss after each epoch.
"""

import tempfile

import torch
from plain_torch import data
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from phaseavg.integrations.transformers import PhasewiseCallback

BATCH, EPOCHS = 50, [10, 5]


def samples(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return images and labels in the format of Trainer."""
    pairs = zip(images, labels, strict=True)
    return [{"pixel_values": image, "labels": label} for image, label in pairs]


def main(seed: int = 0) -> list[float]:
    """Train; return the test loss after every epoch; at a phase end it is the average's loss."""
    images, labels, test_images, test_labels = data(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=10,
    )
    torch.manual_seed(seed)
    model = ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    drop = EPOCHS[0] * len(images) // BATCH  # in updates: Trainer steps the scheduler per update
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [drop])
    callbacks: list[TrainerCallback] = [PhasewiseCallback()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=folder,
                num_train_epochs=sum(EPOCHS),
                per_device_train_batch_size=BATCH,
                eval_strategy="epoch",
                save_strategy="no",
                per_device_eval_batch_size=200,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                seed=seed,
            ),
            train_dataset=samples(images, labels),
            eval_dataset=samples(test_images, test_labels),
            optimizers=(optimizer, scheduler),
            callbacks=callbacks,
        )
        trainer.train()
    return [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]


if __name__ == "__main__":
    main()
