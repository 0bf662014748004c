"""The verdicts on the paper's claims in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.report.claims import (
    Judgement,
    evidence,
    exceptions,
    judge,
    networks_of,
    sign_of,
)
from phaseavg.report.statistics import CONFIDENCE, MOST_SEEDS, interval, verdict
from phaseavg.report.tables import as_markdown, environment
from phaseavg.sweep.cells import Cell
from phaseavg.sweep.claims import CLAIMS, Claim


def _number(value: float, sign: bool = True) -> str:
    return f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def _span(values: np.ndarray, sign: bool, confidence: float = CONFIDENCE) -> str:
    """Return mean and interval in words; of one value the value."""
    if not len(values):
        return ""
    low, high = interval(values, confidence)
    inner = "" if len(values) < 2 else f" [{_number(low, sign)}, {_number(high, sign)}]"
    return f"{_number(values.mean(), sign)}{inner}"


def _settled(found: Judgement) -> str:
    if found.verdict != "open":
        return ""
    try:
        needed = found.seeds_to_settle()
    except ValueError:
        return "not to be said from fewer than 2"
    return f"{needed:,}" if needed else f"more than {MOST_SEEDS:,}"


def _so_far(word: str, complete: bool) -> str:
    """Return a verdict, with a reserve as long as cells are missing."""
    return word if word == "open" or complete else f"{word} so far"


def _of_the_paper(claim: Claim, figures: pd.DataFrame) -> str:
    """Return the paper's own figure for a claim, and its own exceptions."""
    known = figures.dropna(subset="difference")
    if known.empty:
        return "no figures"
    named = {
        sign: [" ".join(key[1:]) + f" ({key[0]})" for key in known.index[known["sign"] == sign]]
        for sign in ("above", "equal")
    }
    within = known.index[known["within"].astype(bool) & (known["sign"] == "below")]
    named["within"] = [" ".join(key[1:]) + f" ({key[0]})" for key in within]
    below = int((known["sign"] == "below").sum())
    text = f"mean {_number(known['difference'].mean())}, below 0 in {below} of {len(known)} cells"
    words = {"above": "against it", "equal": "equal", "within": "within one deviation"}
    for key, word in words.items():
        if named[key]:
            text += f"; {word}: {', '.join(named[key])}"
    return text


def judged(
    cells: Sequence[Cell], rows: pd.DataFrame, paper: pd.DataFrame, beside: pd.DataFrame
) -> list[dict[str, Any]]:
    """Return all that is to be said of each claim, in words.

    Args:
        cells: all that there are.
        rows: from `read_cells`.
        paper: from `read_paper`.
        beside: of it, what stands beside ours cell by cell.
    """
    pages, comparable = [], {key[1:3] for key in beside.index}
    for claim in CLAIMS:
        networks = networks_of(claim, cells)
        found = evidence(claim, rows, networks)
        judgement = judge(claim, found)
        figures = exceptions(claim, paper)
        sign = not claim.of_costs
        parts = [
            {
                "part": " ".join(key),
                "verdict": _so_far(word, part.complete),
                "difference": _span(part.values, sign, judgement.confidence),
                "seeds": len(part.values),
                "cells": f"{len(part.used)} of {len(part.differences)}",
            }
            for key, (part, word) in judgement.parts.items()
            if claim.parts
        ]
        if claim.beside:
            uncounted = evidence(claim, rows, networks, claim.beside).parts(["pair"])
            parts += [
                {
                    "part": " ".join(key),
                    "verdict": _so_far(verdict(part.values, part.margin), part.complete)
                    + " (not counted)",
                    "difference": _span(part.values, sign),
                    "seeds": len(part.values),
                    "cells": f"{len(part.used)} of {len(part.differences)}",
                }
                for key, part in uncounted.items()
            ]
        lines = []
        for (label, *network), values in found.differences.iterrows():
            kept = values.dropna()
            known = tuple(network) in comparable
            figure = figures["difference"].get((label, *network), np.nan) if known else np.nan
            lines.append(
                {
                    "data set": network[0],
                    "network": network[1],
                    "compared": label,
                    "seeds": " ".join(map(str, kept.index)),
                    "ours": _number(kept.mean(), sign) if len(kept) else "",
                    "sign": sign_of(kept.mean(), found.margin),
                    "paper": "" if pd.isna(figure) else _number(figure),
                }
            )
        signs = [line["sign"] for line in lines if line["sign"]]
        estimate = judgement.estimate
        pages.append(
            {
                "claim": claim,
                "margin": "" if pd.isna(found.margin) else f"{round(found.margin, 3):g}",
                "verdict": _so_far(judgement.verdict, judgement.complete),
                "span": _span(estimate, sign, judgement.confidence),
                "seeds": len(estimate),
                "cells": f"{len(found.used)} of {len(found.differences)}",
                "counted": f"{judgement.counted} of {len(judgement.parts)}" if claim.parts else "",
                "below": f"{signs.count('below')} of {len(signs)}" if signs else "",
                "paper": _of_the_paper(claim, figures),
                "settled": _settled(judgement),
                "parts": parts,
                "lines": lines,
            }
        )
    return pages


def summary_of(pages: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return a row per claim, in words.

    Args:
        pages: from `judged`.
    """
    return pd.DataFrame(
        {
            "": page["claim"].name,
            "claim": page["claim"].text,
            "verdict": page["verdict"],
            "difference [95 % interval]": page["span"],
            "seeds": page["seeds"] or "",
            "cells used": page["cells"],
            "parts with 2 seeds": page["counted"],
            "cells below": page["below"],
            "seeds that would settle it": page["settled"],
        }
        for page in pages
    )


def claims_page(pages: Sequence[dict[str, Any]], remark: str = "", picture: str = "") -> str:
    """Return the verdicts as Markdown.

    Args:
        pages: from `judged`.
        remark: on the runs behind them.
        picture: the name of a file beside the page; none by default.
    """
    template = environment("md").get_template("claims.md.j2")
    return template.render(
        summary=as_markdown(summary_of(pages)),
        remark=remark,
        picture=picture,
        pages=[
            page
            | {
                "parts": as_markdown(pd.DataFrame(page["parts"])),
                "lines": as_markdown(pd.DataFrame(page["lines"])),
            }
            for page in pages
        ],
    )
