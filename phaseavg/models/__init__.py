"""The paper's networks."""

from phaseavg.models.cnn13 import CNN13
from phaseavg.models.resnet import ResNet, resnet34

__all__ = ["CNN13", "ResNet", "resnet34"]
