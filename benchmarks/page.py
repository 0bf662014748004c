"""The pages of what was measured, from its records: `python -m benchmarks.page`.

Each benchmark leaves `benchmarks/results/<name>.json`. From these, and from nothing else, come
`benchmarks/README.md` and the table between two marks in the repository's README.md.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.marks import between_marks
from phaseavg.runs.files import write_atomically

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
README = HERE.parent / "README.md"

TITLES = {  # of the benchmarks, in the order of the pages
    "input": "Augmented batches beside torchvision's",
    "training": "Training beside timm's and torchvision's loops",
    "averaging": "What averaging costs beside training",
    "optimizers": "Optimizer steps beside the peers'",
    "epochs": "How many epochs the tables take",
    "sharing": "What sharing saves",
    "startup": "What starting takes, to the first step",
    "gpu-networks": "Networks on a GPU",
    "gpu-determinism": "What determinism costs on a GPU",
    "gpu-imagenet": "Networks for ImageNet on a GPU",
    "gpu-kernels": "Where the time goes on a GPU",
}
COLUMNS = ["what", "beside", "measured", "goal", "met"]
VERDICTS = {True: "met", False: "not met", None: ""}


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the records that there are, by the benchmark's name."""
    paths = {name: folder / f"{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def section(result: Mapping[str, Any]) -> str:
    """Return what one benchmark has measured: machine, how, goals and tables."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    facts = [
        f"- measured: {result['date']}",
        f"- device: {machine['device']}",
        f"- threads: {machine['threads']}",
        f"- {versions}",
    ]
    blocks = [f"## {result['title']}", "\n".join(facts), result["how"]]
    if result["goals"]:
        blocks.append(markdown([headline(goal) for goal in result["goals"]]))
    for table in result["tables"]:
        blocks += [*[table["caption"]] * bool(table["caption"]), markdown(table["rows"])]
    return "\n\n".join(blocks)


def headline(goal: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of one outcome and its goal, which it may have none of."""
    return {name: goal[name] for name in COLUMNS} | {"met": VERDICTS[goal["met"]]}


def benchmarks_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of `benchmarks/README.md`."""
    missing = "Not measured: `python -m benchmarks.{}`."
    sections = [
        section(results[name])
        if name in results
        else f"## {title}\n\n{missing.format(name.replace('-', ' '))}"
        for name, title in TITLES.items()
    ]
    opening = (
        "# Measured\n\n"
        "By `make bench`; this page is made from the records in [results](results), which have the "
        "numbers of every round. A goal is met if it is in every round. Medians over rounds, in "
        "parentheses the least and the most, or what is said there."
    )
    return "\n\n".join([opening, *sections]) + "\n"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of all outcomes."""
    rows = []
    for name, title in TITLES.items():
        if name in results:  # which may have no outcome of its own
            rows += [headline(goal) for goal in results[name]["goals"]]
        else:
            rows.append({"what": title, "measured": "not measured"})
    return markdown(pd.DataFrame(rows, columns=COLUMNS).fillna("").to_dict("records"))


def main() -> int:
    """Write both."""
    results = read_results()
    try:
        readme = between_marks(README.read_text(encoding="utf-8"), "benchmarks", summary(results))
        for path, text in ((PAGE, benchmarks_page(results)), (README, readme)):
            write_atomically(path, text.encode(), place=str(path))
    except UserError as error:
        print(f"page.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
