"""Write the verdicts on the paper's claims as a CSV file and a Markdown page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.report.claims import (
    Evidence,
    differences_in,
    evidence,
    judge,
    margin_side,
)
from phaseavg.report.paper_claims import CLAIMS, Claim
from phaseavg.report.statistics import CONFIDENCE, interval, signed, verdict, with_interval
from phaseavg.report.study import Study
from phaseavg.report.tables import as_markdown
from phaseavg.runs.files import write_atomically

RULE = """\
# What the paper claims, and what our runs say

Verdicts by one rule. The unit is the seed: paired differences are averaged over cells for each
seed, and a 95 % t interval is taken over the seeds. Two runs form a pair if they have the same seed
and the same execution: device, precision, threads and version of torch. A claim **holds** if the
interval lies below its margin (0 unless stated otherwise), **does not hold** if it lies above, and
is **open** otherwise. A claim that says "and" or "every" (C3 to C9) has parts: each pair of
columns, averaged over the networks; in C6 each pair on each data set and network. It holds only if
each part holds, and does not hold if one part lies above its margin after Holm's correction over
the parts with two seeds or more. The difference shown is the mean over all its cells, and does not
affect such a verdict. With three seeds the interval is ± 2.5 deviations, so many will be open. A
claim with a part of fewer than two seeds cannot hold. The cells used are the largest block of cells
and seeds in which no run is missing; *so far* says that cells are missing. Errors and differences
are in %; what is below the margin speaks for the claim. Runs that diverged count as missing.
"""


def span(row: Mapping[str, Any]) -> str:
    """Format the mean and interval of a row of verdicts; for one seed the value only."""
    return with_interval(row["mean"], row["low"], row["high"], 3)


def _row(
    claim: Claim, part: str, data: Evidence, values: np.ndarray, word: str, complete: bool,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of verdicts; the verdict ends with `so far` while cells are missing."""
    low, high = interval(values, confidence)
    return {
        "claim": claim.name,
        "text": claim.text,
        "part": part,
        "verdict": word if word == "open" or complete else f"{word} so far",
        "mean": values.mean() if len(values) else np.nan,
        "low": low,
        "high": high,
        "margin": data.margin,
        "seeds": len(values),
        "cells": len(data.used),
        "all_cells": len(data.differences),
    }


def _rows(claim: Claim, study: Study, data: Evidence) -> list[dict]:
    """Return the rows of a claim, of its parts, and of the pairs that are not counted."""
    judgement = judge(claim, data)
    parts, confidence = judgement.parts, judgement.confidence
    means = data.differences.mean(axis=1)
    signs = [sign for mean in means if (sign := margin_side(mean, data.margin))]
    complete = all(part.complete for part in parts.values())
    total = _row(claim, "", data, judgement.estimate, judgement.verdict, complete, confidence)
    total["counted"] = f"{judgement.counted} of {len(parts)}" if claim.parts else ""
    total["below"] = f"{signs.count('below')} of {len(signs)}" if signs else ""
    rows = [total]
    for key, part in parts.items() if claim.parts else ():
        word = judgement.words[key]
        rows.append(_row(claim, " ".join(key), part, part.values, word, part.complete, confidence))
    if not claim.uncounted:
        return rows
    uncounted = evidence(claim, study.rows, study.keys, claim.uncounted)
    for (label,), part in uncounted.parts(["pair"]).items():
        word = verdict(part.values, part.margin)
        row = _row(claim, label, part, part.values, word, part.complete)
        rows.append(row | {"verdict": f"{row['verdict']} (not counted)"})
    return rows


def read_verdicts(path: Path) -> pd.DataFrame:
    """Read the verdicts that `write_claims` wrote."""
    texts = ["part", "counted", "below"]
    return pd.read_csv(path, dtype=dict.fromkeys(texts, str)).fillna(dict.fromkeys(texts, ""))


def summary_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return a row of texts per claim."""
    total = verdicts[verdicts["part"] == ""]
    return pd.DataFrame(
        {
            "": total["claim"],
            "claim": total["text"],
            "verdict": total["verdict"],
            "difference [interval]": total.apply(span, axis=1),
            "seeds": total["seeds"].astype(str).replace("0", ""),
            "cells used": total["cells"].astype(str) + " of " + total["all_cells"].astype(str),
            "parts with 2 seeds": total["counted"],
            "cells below": total["below"],
        }
    )


def _paper_summary(differences: pd.Series, margin: float) -> str:
    """Describe the paper's numbers for a claim, with the exceptions."""
    differences = differences.dropna()
    if differences.empty:
        return "no figures"
    signs = differences.map(lambda difference: margin_side(difference, margin))
    below = f"below {margin:g} in {(signs == 'below').sum()} of {len(differences)} cells"
    words = [f"mean {signed(differences.mean(), 3)}, {below}"]
    for word, sign in (("against it", "above"), ("equal", "equal")):
        cells = [f"{' '.join(key[1:])} ({key[0]})" for key in differences.index[signs == sign]]
        words += [f"{word}: {', '.join(cells)}"] if cells else []
    return "; ".join(words)


def _cells(claim: Claim, data: Evidence, paper: Mapping[tuple[str, ...], float]) -> pd.DataFrame:
    """Return a row per cell, with the paper's difference if it is comparable."""
    rows = []
    for (label, *network), values in data.differences.iterrows():
        mean = values.mean()
        rows.append(
            {
                "data set": network[0],
                "network": network[1],
                "compared": label,
                "seeds": " ".join(map(str, values.dropna().index)),
                "ours": signed(mean, 3),
                "sign": margin_side(mean, data.margin),
                "paper": signed(paper.get((label, *network), np.nan), 3),
            }
        )
    return pd.DataFrame(rows)


def _section(
    claim: Claim, rows: list[dict[str, Any]], cells: pd.DataFrame, paper: str
) -> list[str]:
    """Return the paragraphs of a claim's section."""
    total, *part_rows = rows
    margin = "" if np.isnan(total["margin"]) else f"{round(total['margin'], 3):g}"
    words = [
        f"**{total['verdict']}**" + (f": {span(total)}" if span(total) else "")
        + f", {total['seeds']} seeds, {total['cells']} of {total['all_cells']} cells"
    ]  # fmt: skip
    if total["counted"]:
        words.append(f"{total['counted']} parts have two seeds")
    if total["below"]:
        words.append(f"below {margin} in {total['below']} cells")
    parts = pd.DataFrame(
        {
            "part": row["part"],
            "verdict": row["verdict"],
            "difference": span(row),
            "seeds": row["seeds"],
            "cells": f"{row['cells']} of {row['all_cells']}",
        }
        for row in part_rows
    )
    return [
        f"## {claim.name}: {claim.text}",
        "; ".join(words) + ".",
        claim.note + (f" Here {margin}." if claim.margin is None and margin else ""),
        f"The paper: {paper}.",
        as_markdown(parts),
        f"<details><summary>Cells</summary>\n\n{as_markdown(cells)}\n\n</details>",
    ]


def claims_page(study: Study) -> tuple[pd.DataFrame, str]:
    """Return the verdicts on the paper's claims, and a Markdown page about them.

    Args:
        study: the cells and records to judge by.

    Returns:
        A row per claim, with an empty `part`, followed by a row per part. Columns: claim, text,
        part, verdict, mean, low, high (%), margin, seeds, cells (used), all_cells. Rows of claims
        also have `counted`, the parts with two seeds, and `below`, the cells below the margin.
    """
    verdicts: list[dict[str, Any]] = []
    sections: list[str] = []
    for claim in CLAIMS:
        data = evidence(claim, study.rows, study.keys)
        rows = _rows(claim, study, data)
        words = _paper_summary(differences_in(claim, study.paper), claim.margin or 0.0)
        cells = _cells(claim, data, differences_in(claim, study.comparable))
        sections += _section(claim, rows, cells, words)
        verdicts += rows
    frame = pd.DataFrame(verdicts)
    remark = study.remark and f"{study.remark}."
    parts = [RULE.rstrip(), remark, as_markdown(summary_table(frame)), *sections]
    return frame, "\n\n".join(part for part in parts if part) + "\n"


def write_claims(study: Study, path: Path) -> list[Path]:
    """Write the page of `claims_page`, and its frame as a CSV file next to it; return the paths."""
    frame, page = claims_page(study)
    table = frame.round(6).to_csv(index=False, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {path: page, path.with_suffix(".csv"): table}
    for file, text in files.items():
        write_atomically(file, text.encode(), f"--output={path.parent}")
    return list(files)
