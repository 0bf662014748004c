"""The errors of averages against the mean age of their weights."""

from itertools import combinations

import pandas as pd
from matplotlib.text import Annotation

from phaseavg.report.figures.averages import draw


def test_labels_of_near_points_do_not_overlap() -> None:
    rows = [
        ("last", 0.0, 77.4),
        ("exponential=0.8", 4.0, 68.28),
        ("exponential=0.9", 9.0, 68.26),
        ("tail=0.25", 9.5, 68.45),
        ("rna=1e-5", 34.71, 73.49),
        ("rna=1e-2", 34.87, 73.50),
    ]
    picture = draw(pd.DataFrame(rows, columns=["average", "mean_age", "test_error"]))
    picture.draw_without_rendering()
    texts = picture.axes[0].texts
    labels = [t for t in texts if isinstance(t, Annotation) and t.get_text()]
    assert [t.get_text() for t in labels] == ["0.8", "0.9", "0.25", "1e-5", "1e-2"]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
