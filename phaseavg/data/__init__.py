"""Data sets: functions and classes that return a `DataSet`."""

from phaseavg.data.cifar import cifar10, cifar100
from phaseavg.data.digits import digits
from phaseavg.data.imagenet import ImageNet
from phaseavg.data.interface import Batch, DataSet
from phaseavg.data.resident import ResidentImages
from phaseavg.data.svhn import svhn

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
