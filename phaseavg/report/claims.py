"""Judge the paper's claims by our runs.

The unit is the seed. For a claim and each of its parts, paired differences are averaged over the
cells for each seed, and a t interval is taken over the seeds. A claim holds if each of its parts
holds; see `phaseavg.report.statistics.judge_parts`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd

from phaseavg.report import statistics
from phaseavg.report.paper_claims import Claim, Pair
from phaseavg.report.statistics import PAIR_KEYS

NETWORK = ["dataset", "model"]


@dataclass
class Evidence:
    """The paired differences that decide a claim or a part of a claim.

    Attributes:
        differences: a row per cell (label of the pair, data set, network), a column per seed; NaN
            if a run is missing.
        margin: the upper limit of the differences; NaN if it cannot be measured yet.
    """

    differences: pd.DataFrame
    margin: float

    @cached_property
    def used(self) -> pd.DataFrame:
        """The largest complete block of cells and seeds, with two seeds or more if possible."""
        sets: set[frozenset] = set()
        for _, row in self.differences.iterrows():
            seeds = frozenset(row.dropna().index)
            sets |= {seeds} | {seeds & other for other in sets}
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
        """Return the evidence of each part, by its values of the index levels."""
        if not levels:
            return {("",): self}
        grouped = self.differences.groupby(list(levels), sort=False)
        return {key: Evidence(rows, self.margin) for key, rows in grouped}


@dataclass
class Judgement:
    """The verdict on a claim and on each of its parts.

    Attributes:
        evidence: the evidence of all cells.
        alternatives: the evidence of each part, by its key; a mapping per alternative.
        verdict: `holds`, `does not hold` or `open`.
        words: the verdict on each part, by its key.
    """

    evidence: Evidence
    alternatives: list[dict[tuple[str, ...], Evidence]]
    verdict: str
    words: dict[tuple[str, ...], str]

    @property
    def confidence(self) -> float:
        """The confidence level of the intervals that decide."""
        return statistics.adjusted_confidence(len(self.alternatives))

    @property
    def parts(self) -> dict[tuple[str, ...], Evidence]:
        """All parts."""
        return {key: part for parts in self.alternatives for key, part in parts.items()}

    @property
    def counted(self) -> int:
        """The number of parts with two seeds or more."""
        return sum(len(part.values) > 1 for part in self.parts.values())

    @property
    def estimate(self) -> np.ndarray:
        """One value per seed: the mean over all cells.

        With several alternatives: the worst part of the best alternative.
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
    verdict, words = statistics.judge_parts(values, evidence.margin)
    by_part = zip(chain(*groups), chain(*words), strict=True)
    return Judgement(evidence, groups, verdict, dict(by_part))


def _column(rows: pd.DataFrame, cell: tuple[str, str]) -> pd.DataFrame:
    """Return the rows of a table column, indexed by data set, network and `PAIR_KEYS`."""
    table, column = cell
    chosen = rows[(rows["table"] == table) & (rows["column"] == column)]
    return chosen.set_index([*NETWORK, *PAIR_KEYS])


def differences(pair: Pair, rows: pd.DataFrame) -> pd.Series:
    """Return the quantity of a pair by data set, network and seed."""
    left, right = _column(rows, pair.left), _column(rows, pair.right)
    if pair.quantity == "overhead":
        averaging = left["averaging_seconds"]
        values = 100 * averaging / (left["method_seconds"] - averaging)
    else:
        values = statistics.differences(left[pair.quantity], right[pair.quantity])
    return values.droplevel("execution").astype(float).dropna()


def evidence(
    claim: Claim,
    rows: pd.DataFrame,
    keys: Iterable[tuple[str, ...]],
    pairs: Sequence[Pair] | None = None,
) -> Evidence:
    """Return the evidence for a claim.

    Args:
        claim: an element of `CLAIMS`.
        rows: from `read_cells` or `published`; diverged runs count as missing.
        keys: all cells, by table, data set, network and column.
        pairs: pairs to compare instead of the claim's pairs.
    """
    rows, networks = rows[rows["status"] == "finished"], common_networks(claim, keys)
    values = {pair.label: differences(pair, rows) for pair in pairs or claim.pairs}
    frame = pd.concat(values, names=["pair"]).unstack("seed")
    index = [(label, *network) for label in values for network in networks]
    cells = pd.MultiIndex.from_frame(pd.DataFrame(index, columns=["pair", *NETWORK], dtype=object))
    margin = best_deviation(claim, rows, networks) if claim.margin is None else claim.margin
    return Evidence(frame.reindex(cells), margin)


def best_deviation(claim: Claim, rows: pd.DataFrame, networks: Iterable[tuple[str, ...]]) -> float:
    """Return the sample standard deviation of each network's best cell, averaged over networks.

    The best of the compared cells has the lowest mean over the seeds that all cells have. NaN if no
    network has two such seeds.
    """
    sides = dict.fromkeys(side for pair in claim.pairs for side in (pair.left, pair.right))
    errors = {side: _column(rows, side)["test_error"].droplevel("execution") for side in sides}
    by_network = pd.DataFrame(errors).dropna().groupby(NETWORK)
    means, deviations = by_network.mean(), by_network.std()
    best = [
        deviations.loc[network, means.loc[network].idxmin()]
        for network in networks
        if network in means.index
    ]
    return float(pd.Series(best, dtype=float).mean())


def published(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's cells as rows for `evidence`, with a single seed."""
    rows = paper.reset_index().rename(columns={"error_mean": "test_error"})
    missing = dict.fromkeys(("bn_test_error", "method_seconds", "averaging_seconds"), np.nan)
    return rows.assign(seed=0, execution="", status="finished", **missing)


def common_networks(claim: Claim, keys: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return each (data set, network) that has cells on both sides of a claim's pairs."""
    tables = {side[0] for pair in claim.pairs for side in (pair.left, pair.right)}
    present = dict.fromkeys((table, (dataset, model)) for table, dataset, model, _ in keys)
    networks = dict.fromkeys(network for _, network in present)
    return [network for network in networks if present.keys() >= {(t, network) for t in tables}]


def margin_side(difference: float, margin: float) -> str:
    """Return `below`, `equal` or `above`, relative to the margin; empty for NaN."""
    distance = round(difference - margin, 9)
    return (
        "below" if distance < 0 else "above" if distance > 0 else "equal" if distance == 0 else ""
    )


def differences_in(claim: Claim, paper: pd.DataFrame) -> pd.Series:
    """Return the paper's differences of means for a claim, by cell; NaN for costs."""
    return evidence(claim, published(paper), paper.index).differences.reindex(columns=[0])[0]
