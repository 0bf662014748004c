"""Phase-wise averaging of a small character-level transformer, trained with AdamW.

    python examples/language_model.py

The text is this repository's licence. The learning rate has a warm-up, a constant part and two
drops, which define the phases. Without BatchNorm the average needs no recomputation pass. Prints
the validation loss (nats per character) of the weights and of the average at each phase end.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from phaseavg.averaging import Phasewise

CONTEXT, BATCH, STEPS, EPOCHS = 32, 16, 20, 40
WARM_UP, DROPS = 4, (24, 32)
"""Number of warm-up epochs, and epochs after which the learning rate is multiplied by 0.3."""


class Transformer(nn.Module):
    """A causal character-level transformer.

    Args:
        characters: size of the alphabet.
        width: size of the embedding.
        layers: number of transformer layers.
    """

    def __init__(self, characters: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, width)
        self.positions = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return logits (B, L, characters) for text (B, L)."""
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        hidden = self.tokens(text) + self.positions.weight[: text.shape[1]]
        return self.head(self.layers(hidden, mask=mask, is_causal=True))


def mean_loss(model: nn.Module, text: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over the windows of `text` that begin at `starts`."""
    windows = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
    logits = model(windows[:, :-1])
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def factor(epoch: int) -> float:
    """Return the learning rate of an epoch as a multiple of the maximum."""
    return min((epoch + 1) / WARM_UP, 1.0) * 0.3 ** sum(epoch >= drop for drop in DROPS)


def main(seed: int = 0) -> list[tuple[float, float]]:
    """Train; return the validation losses of the weights and of the average at each phase end."""
    torch.manual_seed(seed)
    text = Path(__file__).parents[1].joinpath("LICENSE").read_text()
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])
    training, validation = codes[:-1500], codes[-1500:]
    checks = torch.arange(0, len(validation) - CONTEXT - 1, CONTEXT)
    model = Transformer(len(alphabet))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    averager = Phasewise.from_scheduler(model, scheduler, EPOCHS)
    print(f"phases of {averager.lengths} epochs")
    losses = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            starts = torch.randint(len(training) - CONTEXT - 1, (BATCH,))
            loss = mean_loss(model, training, starts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            last = mean_loss(model, validation, checks).item()
            if averager.epoch_end(model):
                losses.append((last, mean_loss(model, validation, checks).item()))
                print(f"epoch {epoch + 1}: weights {last:.3f}, average {losses[-1][1]:.3f}")
        scheduler.step()
    return losses


if __name__ == "__main__":
    main()
