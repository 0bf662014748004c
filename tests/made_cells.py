"""Tables and networks for tests of cells and shared prefixes."""

from collections.abc import Callable, Sequence

from conftest import REPOSITORY
from omegaconf import DictConfig

from phaseavg.sweep.cells import Request, paper_tables, read_request

CONF = REPOSITORY / "conf"

OPTIONS = sorted(path.stem for path in (CONF / "table").glob("*.yaml"))
TABLES = paper_tables(OPTIONS)

NETWORKS = ("cnn13", "resnet50")
"""Networks whose cells are all composed: one for CIFAR and SVHN, one for ImageNet."""

TABLE = """\
title: two methods
seeds: [0, 1]
rows:
  - [dataset=digits, model=cnn13_digits]
columns:
  plain: [averaging=none]
  ours: [averaging=phasewise]
  again: [averaging=none]
"""


def request_for(composed: Callable[[Sequence[str]], DictConfig], *arguments: str) -> Request:
    return read_request(arguments, OPTIONS, composed)
