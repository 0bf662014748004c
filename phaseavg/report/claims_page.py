"""The verdicts on the paper's claims: a frame, and a page made from it."""

from pathlib import Path

import numpy as np
import pandas as pd

from phaseavg.report.claims import (
    Evidence,
    Judgement,
    evidence,
    exceptions,
    judge,
    networks_of,
    sign_of,
)
from phaseavg.report.figures import claims as picture
from phaseavg.report.figures.style import rendered
from phaseavg.report.paper_claims import CLAIMS, Claim
from phaseavg.report.statistics import CONFIDENCE, MOST_SEEDS, interval, verdict
from phaseavg.report.study import Study
from phaseavg.report.tables import as_markdown
from phaseavg.runs.files import write_atomically

RULE = """\
# What the paper claims, and what our runs say

Verdicts by one rule. The unit is the seed: paired differences are averaged over cells for each
seed, and a 95 % t interval is taken over the seeds. A pair is of two runs with the same seed and
the same execution: device, precision, threads and version of torch. A claim **holds** if the
interval lies below its margin (0, where nothing else is said), **does not hold** if it lies above,
and is **open** else. A claim that says "and" or "every" (C3 to C9) has parts: each pair of columns,
averaged over the networks; in C6 each pair on each data set and network. It holds only if each part
holds, and does not hold if one part lies above its margin after Holm's correction over the parts
with two seeds or more. The difference beside it is the mean over its cells, and decides nothing
there. With three seeds the interval is ± 2.5 deviations, so many will be open. A claim with a part
of fewer than two seeds cannot hold. The cells used are the largest block of cells and seeds in
which no run is missing; *so far* says that cells are missing. Errors and differences are in %; what
is below the margin speaks for the claim. Runs that diverged count as missing.
"""


def _number(value: float, sign: bool = True) -> str:
    return f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def span(row: pd.Series) -> str:
    """Return the mean and interval of a row of `verdicts` in words; of one seed the value."""
    if np.isnan(row["mean"]):
        return ""
    inner = (
        ""
        if np.isnan(row["low"])
        else f" [{', '.join(_number(row[k], row['signed']) for k in ('low', 'high'))}]"
    )
    return f"{_number(row['mean'], row['signed'])}{inner}"


def _row(
    claim: Claim, part: str, found: Evidence, values: np.ndarray, word: str, complete: bool,
    confidence: float = CONFIDENCE,
) -> dict[str, object]:  # fmt: skip
    """Return a row of `verdicts`; a verdict has a reserve as long as cells are missing."""
    low, high = interval(values, confidence) if len(values) > 1 else (np.nan, np.nan)
    return {
        "claim": claim.name,
        "text": claim.text,
        "part": part,
        "verdict": word if word == "open" or complete else f"{word} so far",
        "mean": values.mean() if len(values) else np.nan,
        "low": low,
        "high": high,
        "margin": found.margin,
        "seeds": len(values),
        "cells": len(found.used),
        "all_cells": len(found.differences),
        "signed": not claim.of_costs,
    }


def _seeds_to_settle(found: Judgement) -> str:
    if found.verdict != "open":
        return ""
    try:
        needed = found.seeds_to_settle()
    except ValueError:
        return "not to be said from fewer than 2"
    return f"{needed:,}" if needed else f"more than {MOST_SEEDS:,}"


def verdicts(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the verdicts on all claims, and the cells behind them.

    Args:
        study: whose cells count.

    Returns:
        A row per claim, with an empty `part`, followed by one per part. Columns: claim, text,
        part, verdict, mean, low, high (differences in %, ratios of costs), margin, seeds, cells
        used, all_cells, signed; of claims also parts with two seeds (`counted`), cells `below` the
        margin, and `seeds_to_settle`. And a row per cell: claim, data set, network, compared,
        seeds, ours, sign.
    """
    rows, cells = [], []
    for claim in CLAIMS:
        networks = networks_of(claim, study.request.cells)
        found = evidence(claim, study.rows, networks)
        judgement = judge(claim, found)
        means = found.differences.mean(axis=1)
        signs = [sign_of(mean, found.margin) for mean in means if not np.isnan(mean)]
        signs = [sign for sign in signs if sign]
        estimate, confidence = judgement.estimate, judgement.confidence
        whole = _row(claim, "", found, estimate, judgement.verdict, judgement.complete, confidence)
        parts = f"{judgement.counted} of {len(judgement.parts)}" if claim.parts else ""
        below = f"{signs.count('below')} of {len(signs)}" if signs else ""
        whole |= {"counted": parts, "below": below, "seeds_to_settle": _seeds_to_settle(judgement)}
        rows.append(whole)
        for key, (part, word) in judgement.parts.items() if claim.parts else ():
            rows.append(
                _row(claim, " ".join(key), part, part.values, word, part.complete, confidence)
            )
        if claim.beside:
            for key, part in (
                evidence(claim, study.rows, networks, claim.beside).parts(["pair"]).items()
            ):
                row = _row(
                    claim,
                    " ".join(key),
                    part,
                    part.values,
                    verdict(part.values, part.margin),
                    part.complete,
                )
                rows.append(row | {"verdict": f"{row['verdict']} (not counted)"})
        for (label, *network), values in found.differences.iterrows():
            kept = values.dropna()
            cells.append(
                {
                    "claim": claim.name,
                    "data set": network[0],
                    "network": network[1],
                    "compared": label,
                    "seeds": " ".join(map(str, kept.index)),
                    "ours": _number(kept.mean(), not claim.of_costs) if len(kept) else "",
                    "sign": sign_of(kept.mean(), found.margin),
                }
            )
    columns = ["claim", "data set", "network", "compared", "seeds", "ours", "sign"]
    return pd.DataFrame(rows), pd.DataFrame(cells, columns=columns)


def read_verdicts(path: Path) -> pd.DataFrame:
    """Return the frame of verdicts that `write_claims` has written."""
    texts = ["part", "counted", "below", "seeds_to_settle"]
    return pd.read_csv(path, dtype=dict.fromkeys(texts, str)).fillna(dict.fromkeys(texts, ""))


def of_the_paper(figures: pd.DataFrame) -> str:
    """Return the paper's own figure for a claim and its exceptions in words.

    Args:
        figures: from `exceptions`.
    """
    known = figures.dropna(subset="difference")
    if known.empty:
        return "no figures"
    below = known["sign"] == "below"
    named = {
        "against it": known.index[known["sign"] == "above"],
        "equal": known.index[known["sign"] == "equal"],
        "within one deviation": known.index[known["within"].astype(bool) & below],
    }
    mean = _number(known["difference"].mean())
    text = f"mean {mean}, below 0 in {below.sum()} of {len(known)} cells"
    for word, keys in named.items():
        if len(keys):
            text += f"; {word}: {', '.join(' '.join(key[1:]) + f' ({key[0]})' for key in keys)}"
    return text


def summary_of(found: pd.DataFrame) -> pd.DataFrame:
    """Return a row per claim as texts, from `verdicts`."""
    whole = found[found["part"] == ""]
    return pd.DataFrame(
        {
            "": whole["claim"],
            "claim": whole["text"],
            "verdict": whole["verdict"],
            "difference [95 % interval]": whole.apply(span, axis=1),
            "seeds": whole["seeds"].astype(str).replace("0", ""),
            "cells used": [
                f"{n} of {of}" for n, of in zip(whole["cells"], whole["all_cells"], strict=True)
            ],
            "parts with 2 seeds": whole["counted"],
            "cells below": whole["below"],
            "seeds that would settle it": whole["seeds_to_settle"],
        }
    )


def _section(claim: Claim, found: pd.DataFrame, cells: pd.DataFrame, paper: str) -> list[str]:
    """Return the paragraphs about a claim."""
    whole = found.iloc[0]
    margin = "" if np.isnan(whole["margin"]) else f"{round(whole['margin'], 3):g}"
    words = [f"**{whole['verdict']}**" + (f": {span(whole)}" if span(whole) else "")]
    words[0] += f", {whole['seeds']} seeds, {whole['cells']} of {whole['all_cells']} cells"
    if whole["counted"]:
        words.append(f"{whole['counted']} parts have two seeds")
    if whole["below"]:
        words.append(f"below {margin} in {whole['below']} cells")
    if whole["seeds_to_settle"]:
        words.append(f"seeds that would settle it: {whole['seeds_to_settle']}")
    parts = pd.DataFrame(
        {
            "part": row["part"],
            "verdict": row["verdict"],
            "difference": span(row),
            "seeds": row["seeds"],
            "cells": f"{row['cells']} of {row['all_cells']}",
        }
        for _, row in found.iloc[1:].iterrows()
    )
    note = claim.note + (f" Here {margin}." if claim.margin is None and margin else "")
    lines = as_markdown(cells.drop(columns="claim"))
    details = f"<details><summary>Cells</summary>\n\n{lines}\n\n</details>"
    heading = f"## {claim.name}: {claim.text}"
    return [
        heading,
        "; ".join(words) + ".",
        note,
        f"The paper: {paper}.",
        as_markdown(parts),
        details,
    ]


def claims_page(
    found: pd.DataFrame, cells: pd.DataFrame, paper: pd.DataFrame, beside: pd.DataFrame,
    remark: str = "", drawn: str = "",
) -> str:  # fmt: skip
    """Return the verdicts as Markdown.

    Args:
        found: from `verdicts`.
        cells: likewise.
        paper: all published cells.
        beside: those that are shown beside ours.
        remark: on the runs behind them.
        drawn: the name of a picture beside the page; none by default.
    """
    alt = "The differences behind the verdicts: of each seed, their mean and its 95 % t interval"
    parts = [
        RULE.rstrip(),
        remark,
        as_markdown(summary_of(found)),
        f"![{alt}]({drawn})" if drawn else "",
    ]
    comparable = {key[1:3] for key in beside.index}
    for claim in CLAIMS:
        figures = exceptions(claim, paper)
        own = cells[cells["claim"] == claim.name]
        keys = list(own[["compared", "data set", "network"]].itertuples(index=False, name=None))
        theirs = [
            _number(figures["difference"][key])
            if key[1:] in comparable and pd.notna(figures["difference"].get(key))
            else ""
            for key in keys
        ]
        about = found[found["claim"] == claim.name]
        parts += _section(claim, about, own.assign(paper=theirs), of_the_paper(figures))
    return "\n\n".join(part for part in parts if part) + "\n"


def write_claims(study: Study, paper: pd.DataFrame, path: Path) -> list[Path]:
    """Write the verdicts on the paper's claims, as far as the study's cells go; return the files.

    Beside the page, under the same name, are the frame as CSV, and the picture of the differences
    once there are any.

    Args:
        study: from `read_study`.
        paper: all published cells.
        path: of the page.
    """
    found, cells = verdicts(study)
    figure, numbers = picture.draw(study)
    files = {} if numbers.empty else rendered(figure, "claims")
    remark = study.remark and f"{study.remark}."
    drawn = path.with_suffix(".svg").name if files else ""
    files["md"] = claims_page(found, cells, paper, study.paper, remark, drawn).encode()
    files["csv"] = found.round(6).to_csv(index=False, lineterminator="\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind, content in files.items():
        write_atomically(path.with_suffix(f".{kind}"), content, f"--claims={path}")
    return [path.with_suffix(f".{kind}") for kind in files]
