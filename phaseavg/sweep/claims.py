"""What the paper claims, each as the pairs of cells that it compares."""

from dataclasses import dataclass

HELP = 0.2
"""C8's margin, stated beforehand: a gain below 0.2 % of error is no further help."""

COST = 1.05
"""C10's margin, stated beforehand: up to 5 % more time is the cost of SGD."""

ADAPTIVE = ("adam", "amsgrad", "adabound")
GAMMAS = ("gamma0-0.99", "gamma0-0.95", "gamma0-0.9", "gamma0-0.8", "gamma0-0.5")
CHOSEN = ("gamma0-0.95", "gamma0-0.9")


@dataclass(frozen=True)
class Pair:
    """Two cells of one network that a claim compares: left − right is to be below the margin.

    Attributes:
        label: what the two are.
        left: table and column.
        right: likewise.
        right_value: the error of `right` that counts.
    """

    label: str
    left: tuple[str, str]
    right: tuple[str, str]
    right_value: str = "test_error"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        name: C1 to C11.
        text: what is claimed.
        pairs: that it compares, for all networks that both tables have.
        margin: what the differences have to be below.
        quantity: what is compared: `error`, in %; `regret`, of error against the best γ0, whose
            deviation is the margin; or `cost`, the ratio of the seconds.
        beside: pairs that are shown and not counted.
        note: how it is measured, where that is not plain.
    """

    name: str
    text: str
    pairs: tuple[Pair, ...]
    margin: float = 0.0
    quantity: str = "error"
    beside: tuple[Pair, ...] = ()
    note: str = ""


LENGTHS = ("60-30-30", "80-40-40", "100-50-50")
OURS = ("2", "ours")

CLAIMS = (
    Claim(
        "C1",
        "a γ0 of 0.9 to 0.95 is best, or within one deviation of the best",
        tuple(Pair(gamma, ("1a", gamma), ("1a", "best")) for gamma in CHOSEN),
        quantity="regret",
        note="The regret of γ0 = 0.9 and of 0.95 against the best γ0 of the network (by its mean "
        "over the seeds, so it is favoured), of the two the one with less; it has to be below the "
        "sample deviation of the best, averaged over the networks.",
    ),
    Claim(
        "C2",
        "exponential weights beat learnt ones",
        (Pair("γ0 = 0.9 − learnt", ("1a", "gamma0-0.9"), ("1a", "learnt")),),
    ),
    Claim(
        "C3",
        "phase-wise averaging beats SGD at every length of training",
        tuple(Pair(f"{t}: ours − SGD", ("1b", f"{t}-ours"), ("1b", f"{t}-sgd")) for t in LENGTHS),
        beside=tuple(
            Pair(
                f"{t}: ours − SGD after a BN pass",
                ("1b", f"{t}-ours"),
                ("1b", f"{t}-sgd"),
                "bn_test_error",
            )
            for t in LENGTHS
        ),
    ),
    Claim(
        "C4",
        "phase-wise averaging beats averaging at the end and Lookahead",
        (
            Pair("phase-wise − at the end", ("1c", "phase-wise"), ("1c", "at-the-end")),
            Pair("phase-wise − Lookahead", ("1c", "phase-wise"), ("1c", "every-k")),
        ),
    ),
    Claim(
        "C5",
        "phase-wise averaging beats the decayed and the cosine learning rate",
        (
            Pair("phase-wise − decayed", ("1c", "phase-wise"), ("1d", "decayed")),
            Pair("phase-wise − cosine", ("1c", "phase-wise"), ("1d", "cosine")),
        ),
    ),
    Claim(
        "C6",
        "it beats ADAM, AMSGRAD, ADABOUND, SGD and Lookahead on every data set and network",
        tuple(
            Pair(f"ours − {column}", OURS, ("2", column))
            for column in (*ADAPTIVE, "sgd", "lookahead")
        ),
        beside=(Pair("ours − sgd after a BN pass", OURS, ("2", "sgd"), "bn_test_error"),),
    ),
    Claim(
        "C7",
        "averaging the adaptive methods for 80 epochs at a constant rate beats these methods at "
        "160 epochs with decay",
        tuple(Pair(f"{a}: averaged − 160", ("3", f"{a}-ours"), ("2", a)) for a in ADAPTIVE),
    ),
    Claim(
        "C8",
        "more phases do not help the averaged adaptive methods further",
        tuple(Pair(f"{a}: 80 − 160", ("3", f"{a}-ours"), ("4", a)) for a in ADAPTIVE),
        margin=HELP,
        note=f"What the phases after the first gain has to be below {HELP} % of error, a margin "
        "that was set beforehand.",
    ),
    Claim(
        "C9",
        "averaged SGD beats the averaged adaptive methods at 80 epochs",
        tuple(Pair(f"SGD − {a}", ("3", "sgd-ours"), ("3", f"{a}-ours")) for a in ADAPTIVE),
    ),
    Claim(
        "C10",
        "the cost is that of SGD",
        tuple(Pair(f"{t}: ours / SGD", ("1b", f"{t}-ours"), ("1b", f"{t}-sgd")) for t in LENGTHS),
        margin=COST,
        quantity="cost",
        note="The ratio of the seconds of training, averaging and its BatchNorm passes, of runs "
        f"with the same execution; it has to be below {COST}, a margin that was set beforehand.",
    ),
    Claim(
        "C11",
        "later phases improve on the average of the first (implied by the method)",
        (Pair("160 − 80", OURS, ("3", "sgd-ours")),),
    ),
)
