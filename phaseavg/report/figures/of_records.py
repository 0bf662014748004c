"""Which figures can be drawn without training: from a study's records, or from settings alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phaseavg.report.figures import claims, gamma, phases, schedules, sharing, weights
from phaseavg.report.figures.drawing import Drawing
from phaseavg.report.study import Study


@dataclass(frozen=True)
class OfRecords:
    """A kind of figure that is drawn from records.

    Attributes:
        draw: makes it of a study, one or several, such as one per network.
        tables: whose cells it shows; of `claims` and `sharing` any may be missing.
        about: what it shows, in a line.
    """

    draw: Callable[[Study], list[Drawing]]
    tables: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class OfSettings:
    """A kind of figure that follows from settings alone.

    Attributes:
        draw: makes it of overrides that hold for all of it and the folder of the configs.
        about: what it shows, in a line.
    """

    draw: Callable[[Sequence[str], Path], list[Drawing]]
    about: str


PAPERS = ("t1a", "t1b", "t1c", "t1d", "t2", "t3", "t4")

OF_RECORDS = {
    "fig5": OfRecords(weights.fig5, ("t1a",), "learnt weights of the first phase, and exponential"),
    "gamma0": OfRecords(gamma.draw, ("t1a",), "test error by γ0, ours and the paper's"),
    "phases": OfRecords(phases.draw, phases.TABLES, "errors at the ends of phases, by method"),
    "claims": OfRecords(claims.draw, PAPERS, "differences that the claims are about, seed by seed"),
    "sharing": OfRecords(sharing.draw, PAPERS, "epochs that sharing saves, and what was trained"),
}

OF_SETTINGS = {
    "fig4": OfSettings(weights.fig4, "exponential weights for windows of several lengths"),
    "fig6": OfSettings(schedules.fig6, "learning rates of the schedules of Table 1d"),
}
