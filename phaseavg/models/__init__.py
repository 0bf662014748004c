"""The paper's networks and all timm networks."""

from phaseavg.models.cnn13 import CNN13
from phaseavg.models.densenet import DenseNet, densenet121
from phaseavg.models.imagenet import resnet50, resnext50, vgg16
from phaseavg.models.resnet import ResNet, resnet34
from phaseavg.models.timm import timm_model
from phaseavg.models.wide_resnet import WideResNet, wrn28_10

__all__ = [
    "CNN13",
    "DenseNet",
    "ResNet",
    "WideResNet",
    "densenet121",
    "resnet34",
    "resnet50",
    "resnext50",
    "timm_model",
    "vgg16",
    "wrn28_10",
]
