"""What our own runs say of the paper's claims.

The unit is the seed: the paired differences of a claim are averaged over its cells for each seed,
and a 95 % t interval is taken over the seeds. A claim holds if the interval lies below its margin,
does not hold if it lies above, and is open else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from phaseavg.sweep.cells import Cell
from phaseavg.sweep.claims import CHOSEN, GAMMAS, Claim, Pair

CONFIDENCE = 0.95
MOST_SEEDS = 10_000


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % t interval of a mean; all numbers if there are fewer than two values."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def verdict(values: np.ndarray, margin: float) -> str:
    """Return `holds`, `does not hold` or `open`, of one value per seed."""
    low, high = interval(values)
    if high < margin:
        return "holds"
    return "does not hold" if low > margin else "open"


def seeds_to_settle(values: np.ndarray, margin: float) -> int | None:
    """Return the least number of seeds whose interval would be clear of the margin.

    If their mean and deviation were those of `values`, of two seeds or more; None if more than
    10,000 would be needed.
    """
    distance, deviation = abs(values.mean() - margin), values.std(ddof=1)
    n = np.arange(2, MOST_SEEDS + 1)
    clear = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation / np.sqrt(n) < distance
    return int(n[clear.argmax()]) if clear.any() else None


@dataclass
class Evidence:
    """What the runs say of a claim, or of a part of it.

    Attributes:
        differences: a row per cell (label of the pair, data set, network), a column per seed; NaN
            where a run is missing.
        margin: what they have to be below.
    """

    differences: pd.DataFrame
    margin: float

    @property
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

    @property
    def values(self) -> np.ndarray:
        """One value per seed: the mean over the cells used."""
        return self.used.mean().to_numpy() if len(self.used) else np.empty(0)

    def part(self, labels: Sequence[str]) -> "Evidence":
        """Return the evidence of some labels alone."""
        kept = self.differences.index.get_level_values(0).isin(labels)
        return Evidence(self.differences[kept], self.margin)


NETWORK = ["dataset", "model"]


def _column(rows: pd.DataFrame, cell: tuple[str, str]) -> pd.DataFrame:
    """Return the rows of one column of one table, by data set, network and seed."""
    table, column = cell
    chosen = rows[(rows["table"] == table) & (rows["column"] == column)]
    return chosen.set_index([*NETWORK, "seed"])


def differences(claim: Claim, pair: Pair, rows: pd.DataFrame) -> pd.Series:
    """Return left − right of a pair, or left / right of its seconds, by data set, network, seed."""
    left, right = _column(rows, pair.left), _column(rows, pair.right)
    if claim.quantity == "error":
        return (left["test_error"] - right[pair.right_value]).dropna()
    both = left.join(right.add_suffix("_right"), how="inner")
    alike = both[both["execution"] == both["execution_right"]]
    return alike["method_seconds"] / alike["method_seconds_right"]


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
    if claim.quantity == "regret":
        return regret(rows, networks)
    found = {pair.label: differences(claim, pair, rows) for pair in pairs or claim.pairs}
    frame = pd.concat(found, names=["pair"]).astype(float).unstack("seed")
    index = [(label, *network) for label in found for network in networks]
    cells = pd.MultiIndex.from_frame(pd.DataFrame(index, columns=["pair", *NETWORK], dtype=object))
    return Evidence(frame.reindex(cells), claim.margin)


def regret(rows: pd.DataFrame, networks: pd.MultiIndex) -> Evidence:
    """Return by how much the better of γ0 = 0.9 and 0.95 is worse than the best γ0.

    Best and better by their means, for each network, over the seeds that all five have. The margin
    is the deviation of the best, averaged over the networks.
    """
    found, deviations = {}, {}
    for network in networks:
        own = rows[(rows["dataset"] == network[0]) & (rows["model"] == network[1])]
        own = own[(own["table"] == "1a") & own["column"].isin(GAMMAS)]
        errors = own.pivot_table(index="seed", columns="column", values="test_error").dropna()
        label = "better of 0.9 and 0.95 − best"
        if errors.empty or set(errors) != set(GAMMAS):
            found[label, *network] = pd.Series(dtype=float)
            continue
        best, chosen = errors.mean().idxmin(), errors[list(CHOSEN)].mean().idxmin()
        found[label, *network] = errors[chosen] - errors[best]
        published = "error_std" in own
        stated = own.set_index("column")["error_std"][best] if published else errors[best].std()
        deviations[label, *network] = stated
    if not found:
        return Evidence(pd.DataFrame(index=pd.MultiIndex.from_arrays([[], [], []])), 0.0)
    result = Evidence(pd.DataFrame(found).T, 0.0)
    if len(result.used):
        result.margin = float(np.mean([deviations[cell] for cell in result.used.index]))
    return result


def published(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's cells as `evidence` takes rows: as if of a single seed."""
    rows = paper.reset_index().rename(columns={"error_mean": "test_error"})
    return rows.assign(seed=0, status="finished", bn_test_error=np.nan)


def networks_of(claim: Claim, cells: Sequence[Cell]) -> pd.MultiIndex:
    """Return the (data set, network) of which the cells have both sides of a claim's pairs."""
    tables = {side[0] for pair in claim.pairs for side in (pair.left, pair.right)}
    rows = [dict.fromkeys((c.dataset, c.model) for c in cells if c.table == t) for t in tables]
    first, *others = rows
    both = [network for network in first if all(network in other for other in others)]
    return pd.MultiIndex.from_frame(pd.DataFrame(both, columns=NETWORK, dtype=object))


def sign_of(difference: float, neutral: float) -> str:
    """Return `below`, `equal` or `above` what says nothing for or against; nothing of a blank."""
    if pd.isna(difference):
        return ""
    return {-1.0: "below", 0.0: "equal", 1.0: "above"}[
        float(np.sign(round(difference - neutral, 9)))
    ]


def exceptions(claim: Claim, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's own figures for a claim: a row per cell.

    Columns: difference, of the means; sign: `below`, `equal` or `above` 0; within, whether it is
    within one deviation, the larger of the two.
    """
    if claim.quantity == "cost":
        return pd.DataFrame(columns=["difference", "sign", "within"])
    cells = [Cell(*key, ()) for key in paper.index]
    found = evidence(claim, published(paper), networks_of(claim, cells)).differences
    difference = found.iloc[:, 0] if found.shape[1] else pd.Series(np.nan, index=found.index)
    within = []
    for label, *network in difference.index:
        pair = next((pair for pair in claim.pairs if pair.label == label), None)
        sides = [] if pair is None else [pair.left, pair.right]
        deviations = [
            paper["error_std"].get((table, *network, column), np.nan) for table, column in sides
        ]
        largest = pd.Series(deviations, dtype=float).max()
        within.append(abs(round(difference[label, *network], 9)) <= largest)
    signs = [sign_of(value, 0.0) for value in difference]
    return pd.DataFrame({"difference": difference, "sign": signs, "within": within})
