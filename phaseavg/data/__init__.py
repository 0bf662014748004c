"""Data sets: functions and classes that return a `DataSet`."""

from phaseavg.data.digits import digits
from phaseavg.data.imagenet import ImageNet
from phaseavg.data.interface import Batch, DataSet
from phaseavg.data.official import cifar10, cifar100, svhn
from phaseavg.data.resident import ResidentImages

__all__ = [
    "Batch",
    "DataSet",
    "ImageNet",
    "ResidentImages",
    "cifar10",
    "cifar100",
    "digits",
    "svhn",
]
