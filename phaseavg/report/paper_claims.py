"""The paper's claims, each defined by the pairs of cells that it compares."""

from dataclasses import dataclass

HELP = 0.2
"""The margin of C8, set in advance: a gain below 0.2 % of error does not count as help."""

COST = 5.0
"""The margin of C10, set in advance: up to 5 % more time counts as the cost of SGD."""

ADAPTIVE = ("adam", "amsgrad", "adabound")


@dataclass(frozen=True)
class Pair:
    """Two cells of a network that a claim compares; the quantity should be below the margin.

    Attributes:
        label: the name of the comparison.
        left: table and column.
        right: table and column.
        quantity: `test_error` or `bn_test_error` (after a BatchNorm pass), as left − right; or
            `overhead`, averaging / training (%) of the runs of `left`.
    """

    label: str
    left: tuple[str, str]
    right: tuple[str, str]
    quantity: str = "test_error"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        name: C1 to C11.
        text: the claim in words.
        pairs: the compared pairs, for all networks that both tables contain.
        margin: the upper limit of the differences; None: the standard deviation of the best γ0.
        parts: the keys (`pair`, `dataset`, `model`) that split the claim into parts; each part has
            to hold. If empty, the mean over all cells decides.
        alternatives: whether the claim holds as soon as the pairs of one left cell hold.
        uncounted: further pairs, shown but not counted.
        note: how the claim is measured, if that is not obvious.
    """

    name: str
    text: str
    pairs: tuple[Pair, ...]
    margin: float | None = 0.0
    parts: tuple[str, ...] = ()
    alternatives: bool = False
    uncounted: tuple[Pair, ...] = ()
    note: str = ""

    @property
    def is_cost(self) -> bool:
        """Whether the claim is about time instead of errors."""
        return self.pairs[0].quantity == "overhead"


EACH_PAIR = ("pair",)
LENGTHS = ("60-30-30", "80-40-40", "100-50-50")
OURS, PHASEWISE = ("t2", "ours"), ("t1c", "phase-wise")


def _at_each_length(label: str, quantity: str = "test_error") -> tuple[Pair, ...]:
    """Return the pairs of averaged and plain SGD in Table 1b, for each length of training."""
    return tuple(
        Pair(f"{length}: {label}", ("t1b", f"{length}-ours"), ("t1b", f"{length}-sgd"), quantity)
        for length in LENGTHS
    )


CLAIMS = (
    Claim(
        "C1",
        "a γ0 of 0.9 to 0.95 is best, or within one deviation of the best",
        tuple(
            Pair(f"γ0 = {gamma} − {other}", ("t1a", f"gamma0-{gamma}"), ("t1a", f"gamma0-{other}"))
            for gamma in ("0.95", "0.9")
            for other in ("0.99", "0.8", "0.5")
        ),
        margin=None,
        parts=EACH_PAIR,
        alternatives=True,
        note="It holds if one of 0.9 and 0.95, the same for all networks, is less than the margin "
        "worse than each of the other three. As there are two to choose from, their intervals are "
        "of 97.5 %. It does not hold if both are worse than another. The difference shown is that "
        "of the better candidate from its closest rival. The margin is the sample deviation of the "
        "best γ0 of a network (by its mean), averaged over the networks.",
    ),
    Claim(
        "C2",
        "exponential weights beat learnt ones",
        (Pair("γ0 = 0.9 − learnt", ("t1a", "gamma0-0.9"), ("t1a", "learnt")),),
    ),
    Claim(
        "C3",
        "phase-wise averaging beats SGD at every length of training",
        _at_each_length("ours − SGD"),
        parts=EACH_PAIR,
        uncounted=_at_each_length("ours − SGD after a BN pass", "bn_test_error"),
    ),
    Claim(
        "C4",
        "phase-wise averaging beats averaging at the end and Lookahead",
        (
            Pair("phase-wise − at the end", PHASEWISE, ("t1c", "at-the-end")),
            Pair("phase-wise − Lookahead", PHASEWISE, ("t1c", "every-k")),
        ),
        parts=EACH_PAIR,
    ),
    Claim(
        "C5",
        "phase-wise averaging beats the decayed and the cosine learning rate",
        tuple(Pair(f"phase-wise − {r}", PHASEWISE, ("t1d", r)) for r in ("decayed", "cosine")),
        parts=EACH_PAIR,
    ),
    Claim(
        "C6",
        "it beats ADAM, AMSGRAD, ADABOUND, SGD and Lookahead on every data set and network",
        tuple(Pair(f"ours − {c}", OURS, ("t2", c)) for c in (*ADAPTIVE, "sgd", "lookahead")),
        parts=(*EACH_PAIR, "dataset", "model"),
        uncounted=(Pair("ours − sgd after a BN pass", OURS, ("t2", "sgd"), "bn_test_error"),),
    ),
    Claim(
        "C7",
        "averaging the adaptive methods for 80 epochs at a constant rate beats these methods at "
        "160 epochs with decay",
        tuple(Pair(f"{a}: averaged − 160", ("t3", f"{a}-ours"), ("t2", a)) for a in ADAPTIVE),
        parts=EACH_PAIR,
    ),
    Claim(
        "C8",
        "more phases do not help the averaged adaptive methods further",
        tuple(Pair(f"{a}: 80 − 160", ("t3", f"{a}-ours"), ("t4", a)) for a in ADAPTIVE),
        margin=HELP,
        parts=EACH_PAIR,
        note=f"The gain of the phases after the first must be below {HELP} % of error, a margin "
        "that was set beforehand.",
    ),
    Claim(
        "C9",
        "averaged SGD beats the averaged adaptive methods at 80 epochs",
        tuple(Pair(f"SGD − {a}", ("t3", "sgd-ours"), ("t3", f"{a}-ours")) for a in ADAPTIVE),
        parts=EACH_PAIR,
    ),
    Claim(
        "C10",
        "the cost is that of SGD",
        _at_each_length("averaging / training", "overhead"),
        margin=COST,
        note="Averaging / training in %, of the seconds inside each run that averages; averaging "
        f"includes its BatchNorm passes. It has to be below {COST:g} %, a margin that was set "
        "beforehand.",
    ),
    Claim(
        "C11",
        "later phases improve on the average of the first (implied by the method)",
        (Pair("160 − 80", OURS, ("t3", "sgd-ours")),),
    ),
)
