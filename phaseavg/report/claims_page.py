"""The verdicts on the paper's claims in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.report.claims import (
    MOST_SEEDS,
    Evidence,
    evidence,
    exceptions,
    interval,
    networks_of,
    seeds_to_settle,
    sign_of,
    verdict,
)
from phaseavg.report.tables import as_markdown, environment
from phaseavg.sweep.cells import Cell
from phaseavg.sweep.claims import CLAIMS, Claim


def _number(value: float, sign: bool = True) -> str:
    return f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def _span(values: np.ndarray, sign: bool) -> str:
    """Return mean and interval in words; of one value the value."""
    if not len(values):
        return ""
    low, high = interval(values)
    inner = "" if len(values) < 2 else f" [{_number(low, sign)}, {_number(high, sign)}]"
    return f"{_number(values.mean(), sign)}{inner}"


def _settled(values: np.ndarray, margin: float) -> str:
    if verdict(values, margin) != "open":
        return ""
    if len(values) < 2:
        return "not to be said from fewer than 2"
    needed = seeds_to_settle(values, margin)
    return f"{needed:,}" if needed else f"more than {MOST_SEEDS:,}"


def _verdict(found: Evidence) -> str:
    """Return the verdict, with a reserve as long as cells are missing."""
    word = verdict(found.values, found.margin)
    return word if word == "open" or len(found.used) == len(found.differences) else f"{word} so far"


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
    if claim.quantity == "regret":
        return f"mean regret {_number(known['difference'].mean())}"
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
        figures = exceptions(claim, paper)
        sign, neutral = claim.quantity != "cost", float(claim.quantity == "cost")
        labels = list(dict.fromkeys(found.differences.index.get_level_values(0)))
        parts = {label: found.part([label]) for label in labels} if len(labels) > 1 else {}
        if claim.beside:
            uncounted = evidence(claim, rows, networks, claim.beside)
            parts |= {pair.label: uncounted.part([pair.label]) for pair in claim.beside}
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
                    "sign": sign_of(kept.mean(), neutral),
                    "paper": "" if pd.isna(figure) else _number(figure),
                }
            )
        signs = [line["sign"] for line in lines if line["sign"]]
        pages.append(
            {
                "claim": claim,
                "margin": found.margin,
                "verdict": _verdict(found),
                "span": _span(found.values, sign),
                "seeds": len(found.values),
                "cells": f"{len(found.used)} of {len(found.differences)}",
                "below": f"{signs.count('below')} of {len(signs)}"
                if signs and claim.quantity != "regret"  # a regret is never below 0
                else "",
                "paper": _of_the_paper(claim, figures),
                "settled": _settled(found.values, found.margin),
                "parts": [
                    {
                        "part": label,
                        "verdict": _verdict(part) + ("" if label in labels else " (not counted)"),
                        "difference": _span(part.values, sign),
                        "seeds": len(part.values),
                        "cells": f"{len(part.used)} of {len(part.differences)}",
                    }
                    for label, part in parts.items()
                ],
                "lines": lines,
            }
        )
    return pages


def claims_page(pages: Sequence[dict[str, Any]], remark: str = "", picture: str = "") -> str:
    """Return the verdicts as Markdown.

    Args:
        pages: from `judged`.
        remark: on the runs behind them.
        picture: the name of a file beside the page; none by default.
    """
    summary = pd.DataFrame(
        {
            "": page["claim"].name,
            "claim": page["claim"].text,
            "verdict": page["verdict"],
            "difference [95 % interval]": page["span"],
            "seeds": page["seeds"] or "",
            "cells used": page["cells"],
            "cells below": page["below"],
            "seeds that would settle it": page["settled"],
        }
        for page in pages
    )
    template = environment("md").get_template("claims.md.j2")
    return template.render(
        summary=as_markdown(summary),
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
