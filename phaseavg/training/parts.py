"""Data set and network of a run, as training and evaluating both need them."""

import torch
from torch import nn

from phaseavg.config import Settings, build
from phaseavg.data import ResidentImages
from phaseavg.randomness import seed_for


def load_data(settings: Settings, device: torch.device) -> ResidentImages:
    """Return the data set on `device`."""
    return build(
        "dataset",
        settings.dataset,
        batch_size=settings.batch_size,
        seed=settings.seed,
        data_dir=settings.data_dir,
        device=device,
    )


def new_model(settings: Settings, data: ResidentImages) -> nn.Module:
    """Return the network on the data's device, initialised on the CPU by the run's seed."""
    torch.manual_seed(seed_for(settings.seed, "initialisation"))
    model = build(
        "model",
        settings.model,
        num_classes=data.num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
    )
    return model.to(data.device)
