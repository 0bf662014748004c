"""What our own runs say of the paper's claims.

The unit is the seed: the paired differences of a claim, and of each of its parts, are averaged
over the cells for each seed, and a t interval is taken over the seeds. A claim holds if each of its
parts does; see `phaseavg.report.statistics.judged`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from phaseavg.report import statistics
from phaseavg.report.paper_claims import Claim, Pair
from phaseavg.report.statistics import SAME
from phaseavg.sweep.cells import Cell

NETWORK = ["dataset", "model"]


@dataclass
class Evidence:
    """What the runs say of a claim, or of a part of it.

    Attributes:
        differences: a row per cell (label of the pair, data set, network), a column per seed; NaN
            where a run is missing.
        margin: what they have to be below; NaN if there are no runs that say it.
    """

    differences: pd.DataFrame
    margin: float

    @cached_property
    def used(self) -> pd.DataFrame:
        """The largest block of cells and seeds without a gap, of two seeds or more if there is."""
        sets = {frozenset(row.dropna().index) for _, row in self.differences.iterrows()}
        sets |= {one & other for one in sets for other in sets}
        blocks = [self.differences[sorted(seeds)].dropna() for seeds in sets if seeds]
        return max(
            blocks,
            key=lambda block: (block.shape[1] > 1, block.size, block.shape[1]),
            default=self.differences.iloc[:0, :0],
        )

    @cached_property
    def values(self) -> np.ndarray:
        """One value per seed: the mean over the cells used."""
        return self.used.mean().to_numpy() if len(self.used) else np.empty(0)

    @property
    def complete(self) -> bool:
        """Whether all cells are used."""
        return len(self.used) == len(self.differences)

    def parts(self, levels: Sequence[str]) -> "dict[tuple[str, ...], Evidence]":
        """Return its parts, by what tells them apart."""
        if not levels:
            return {("",): self}
        grouped = self.differences.groupby(list(levels), sort=False)
        return {key: Evidence(rows, self.margin) for key, rows in grouped}


@dataclass
class Judgement:
    """A claim's verdict, and how it comes about.

    Attributes:
        evidence: of all its cells.
        alternatives: of each its parts, by what tells them apart.
        verdict: `holds`, `does not hold` or `open`.
        words: the same of each part.
    """

    evidence: Evidence
    alternatives: list[dict[tuple[str, ...], Evidence]]
    verdict: str
    words: dict[tuple[str, ...], str]

    @property
    def confidence(self) -> float:
        """The confidence of the intervals that decide."""
        return statistics.confidence_of(len(self.alternatives))

    @property
    def parts(self) -> dict[tuple[str, ...], Evidence]:
        """All parts."""
        return {key: part for parts in self.alternatives for key, part in parts.items()}

    @property
    def counted(self) -> int:
        """How many parts have two seeds or more."""
        return sum(len(part.values) > 1 for part in self.parts.values())

    @property
    def estimate(self) -> np.ndarray:
        """One value per seed: the mean over all cells.

        Of alternatives it is that part of the best one that speaks most against it.
        """
        if len(self.alternatives) == 1:
            return self.evidence.values
        worst = [
            max((part.values for part in parts.values()), key=np.mean)
            for parts in self.alternatives
            if parts and all(len(part.values) for part in parts.values())
        ]
        return min(worst, key=np.mean, default=np.empty(0))


def judge(claim: Claim, evidence: Evidence) -> Judgement:
    """Return the verdict on a claim."""
    parts = evidence.parts(claim.parts)
    groups = [parts]
    if claim.alternatives:
        left = {pair.label: pair.left for pair in claim.pairs}
        groups = [
            {key: part for key, part in parts.items() if left[key[0]] == side}
            for side in dict.fromkeys(left.values())
        ]
    values = [[part.values for part in group.values()] for group in groups]
    verdict, words = statistics.judged(values, evidence.margin)
    by_part = {
        key: word
        for group, own in zip(groups, words, strict=True)
        for key, word in zip(group, own, strict=True)
    }
    return Judgement(evidence, groups, verdict, by_part)


def _column(rows: pd.DataFrame, cell: tuple[str, str]) -> pd.DataFrame:
    """Return the rows of one column of one table, by data set, network and what makes pairs."""
    table, column = cell
    chosen = rows[(rows["table"] == table) & (rows["column"] == column)]
    return chosen.set_index([*NETWORK, *SAME])


def differences(pair: Pair, rows: pd.DataFrame) -> pd.Series:
    """Return the quantity of a pair, by data set, network, seed."""
    left, right = _column(rows, pair.left), _column(rows, pair.right)
    if pair.quantity == "overhead":
        values = left["method_seconds"] / (left["method_seconds"] - left["averaging_seconds"])
    else:
        values = statistics.differences(left[pair.quantity], right[pair.quantity])
    return values.droplevel("execution").astype(float).dropna()


def evidence(
    claim: Claim, rows: pd.DataFrame, networks: pd.MultiIndex, pairs: Sequence[Pair] | None = None
) -> Evidence:
    """Return what the runs say of a claim.

    Args:
        claim: one of `CLAIMS`.
        rows: from `read_cells`, or `published`; runs that diverged count as missing.
        networks: (data set, network) of all the cells that it is about.
        pairs: what to compare instead of the claim's own.
    """
    rows = rows[rows["status"] == "finished"]
    values = {pair.label: differences(pair, rows) for pair in pairs or claim.pairs}
    frame = pd.concat(values, names=["pair"]).unstack("seed")
    index = [(label, *network) for label in values for network in networks]
    cells = pd.MultiIndex.from_frame(pd.DataFrame(index, columns=["pair", *NETWORK], dtype=object))
    margin = deviation_of_best(claim, rows, networks) if claim.margin is None else claim.margin
    return Evidence(frame.reindex(cells), margin)


def deviation_of_best(claim: Claim, rows: pd.DataFrame, networks: pd.MultiIndex) -> float:
    """Return the sample deviation of a network's best cell, averaged over the networks.

    The best of all that the claim compares, by its mean over the seeds that all of them have; NaN
    if no network has two such seeds.
    """
    sides = dict.fromkeys(side for pair in claim.pairs for side in (pair.left, pair.right))
    errors = {side: _column(rows, side)["test_error"].droplevel("execution") for side in sides}
    every = pd.DataFrame(errors).dropna().groupby(NETWORK)
    means, deviations = every.mean(), every.std()
    best = [
        deviations.loc[network, means.loc[network].idxmin()]
        for network in networks
        if network in means.index
    ]
    return float(pd.Series(best, dtype=float).mean())


def published(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's cells as `evidence` takes rows: as if of a single seed."""
    rows = paper.reset_index().rename(columns={"error_mean": "test_error"})
    missing = dict.fromkeys(("bn_test_error", "method_seconds", "averaging_seconds"), np.nan)
    return rows.assign(seed=0, execution="", status="finished", **missing)


def networks_of(claim: Claim, cells: Sequence[Cell]) -> pd.MultiIndex:
    """Return the (data set, network) of which the cells have both sides of a claim's pairs."""
    tables = {side[0] for pair in claim.pairs for side in (pair.left, pair.right)}
    present = {(cell.table, cell.dataset, cell.model) for cell in cells}
    networks = dict.fromkeys((cell.dataset, cell.model) for cell in cells)
    both = [network for network in networks if present >= {(t, *network) for t in tables}]
    return pd.MultiIndex.from_frame(pd.DataFrame(both, columns=NETWORK, dtype=object))


def sign_of(difference: float, margin: float) -> str:
    """Return `below`, `equal` or `above` the margin; nothing of a blank."""
    distance = round(difference - margin, 9)
    return (
        "below" if distance < 0 else "above" if distance > 0 else "equal" if distance == 0 else ""
    )


def differences_in(claim: Claim, paper: pd.DataFrame) -> pd.Series:
    """Return the paper's own differences of means for a claim, by cell; none for costs."""
    if claim.of_costs:
        return pd.Series(dtype=float)
    networks = networks_of(claim, [Cell(*key, ()) for key in paper.index])
    return evidence(claim, published(paper), networks).differences.reindex(columns=[0])[0]
