"""Table 1 of one network as a list: each method beside SGD of the same length, and what it cost."""

import pandas as pd

from phaseavg.report.statistics import (
    SAME,
    differences,
    mean_and_deviation,
    mean_with_interval,
    signed,
    spread,
)
from phaseavg.report.tables import as_markdown

METHODS = {  # by length of training: what a line is about, and the table and column that have it
    "60-30-30": {
        "SGD": ("t1b", "60-30-30-sgd"),
        "phase-wise, γ0 = 0.9": ("t1b", "60-30-30-ours"),
    },
    "80-40-40": {
        "SGD": ("t1b", "80-40-40-sgd"),
        "phase-wise, γ0 = 0.99": ("t1a", "gamma0-0.99"),
        "phase-wise, γ0 = 0.95": ("t1a", "gamma0-0.95"),
        "phase-wise, γ0 = 0.9": ("t1a", "gamma0-0.9"),
        "phase-wise, γ0 = 0.8": ("t1a", "gamma0-0.8"),
        "phase-wise, γ0 = 0.5": ("t1a", "gamma0-0.5"),
        "phase-wise, learnt weights": ("t1a", "learnt"),
        "averaged at the end": ("t1c", "at-the-end"),
        "Lookahead": ("t1c", "every-k"),
        "SGD, decayed rate": ("t1d", "decayed"),
        "SGD, cosine rate": ("t1d", "cosine"),
    },
    "100-50-50": {
        "SGD": ("t1b", "100-50-50-sgd"),
        "phase-wise, γ0 = 0.9": ("t1b", "100-50-50-ours"),
    },
}

COMPARED = {"− SGD": "test_error", "− SGD, both after a BN pass": "bn_test_error"}

CAPTION = (
    "“− SGD” compares the errors in the table, of weights as trained or of an average (after its "
    "BatchNorm pass), with SGD as trained. “− SGD, both after a BN pass” compares the average, or "
    "these weights after a BatchNorm pass, with SGD after such a pass."
)

CELLS = [cell for methods in METHODS.values() for cell in methods.values()]


def headline(rows: pd.DataFrame, model: str, paper: pd.DataFrame) -> str:
    """Return Table 1 of a network as a list with a caption, in Markdown.

    Args:
        rows: from `read_cells`, of one data set.
        model: the network.
        paper: from `read_paper`; its cells of CIFAR-100 stand beside ours.
    """
    own_rows = rows[rows["model"] == model]
    published = paper.reindex([(t, "cifar100", model, c) for t, c in CELLS]).set_axis(CELLS)
    lines = []
    for length, methods in METHODS.items():
        of_sgd = None
        for method, cell in methods.items():
            own = own_rows[(own_rows["table"] == cell[0]) & (own_rows["column"] == cell[1])]
            diverged = int((own["status"] == "diverged").sum())
            own = own[own["status"] == "finished"].set_index(SAME)
            errors = own["test_error"]
            theirs = published.loc[[cell]].iloc[0]
            line = {
                "schedule": length,
                "method": method,
                "n": f"{len(errors) or ''}" + (f" ({diverged} diverged)" if diverged else ""),
                "error": mean_and_deviation(errors),
                **dict.fromkeys(COMPARED, ""),
                "paper's error": spread(theirs["error_mean"], theirs["error_std"]),
                "paper's − SGD": "",
            }
            if of_sgd is None:
                of_sgd = own, theirs["error_mean"]
            else:
                for key, error in COMPARED.items():
                    line[key] = mean_with_interval(differences(own[error], of_sgd[0][error]))
                line["paper's − SGD"] = signed(theirs["error_mean"] - of_sgd[1])
            lines.append(line)
    return f"{as_markdown(pd.DataFrame(lines))}\n\n{CAPTION}"


def cost(records: pd.DataFrame) -> tuple[int, float]:
    """Return the epochs and the seconds of training runs one after the other.

    What several runs have in common was trained once, and counts once: with the run that trained it
    if that is among them.

    Args:
        records: of the runs, from `load_runs`.
    """
    epochs = int((records["epochs"] - records["inherited_epochs"]).sum())
    seconds = float((records["seconds"] - records["inherited_seconds"]).sum())
    counted = set(records["run_id"])
    shared = {
        (s["trajectory"], s["prefix"]): s
        for own in records["segments"]
        for s in own
        if s["trajectory"] not in counted
    }
    epochs += sum(s["last_epoch"] - s["first_epoch"] + 1 for s in shared.values())
    return epochs, seconds + sum(s["seconds"] for s in shared.values())
