"""Rates of finished runs: which count for a run that is to come."""

from pathlib import Path
from typing import Any

import torch
from conftest import TINY
from made_records import change, keep

from phaseavg.runs.provenance import device_name
from phaseavg.sweep.rates import measured_rates, place_of, workload


def test_rates_of_another_execution_do_not_count_for_a_budget(
    compose_settings: Any, tmp_path: Path
) -> None:
    plain = compose_settings(*TINY, "execution.device=cpu", "profile=deterministic")
    fp32 = "execution.precision=fp32"
    fast = compose_settings(*TINY, "execution.device=cpu", "profile=fast", fp32)
    name = device_name(torch.device("cpu"))
    assert place_of(plain) == f"{name}, fp32"
    assert place_of(fast) == f"{name}, fp32, channels last, not deterministic"
    here = {"device_name": name, "precision": "fp32"}
    for number, (took, options) in enumerate(
        [
            (10.0, here),
            (6.0, {**here, "channels_last": True, "deterministic": False}),
            (2.0, {"device_name": "another", "precision": "fp32"}),
            (2.4, {"device_name": "another", "precision": "fp32"}),
        ]
    ):
        folder = tmp_path / str(number) / plain.run_id
        change(keep(plain, 5.0, where=folder, **options), seconds={"total": took})
    folders = [tmp_path / str(number) for number in range(4)]
    work = workload(plain.record())
    assert measured_rates(folders, place_of(plain))[work] == (5.0, 1, f"{name}, fp32")
    assert measured_rates(folders, place_of(fast))[work].seconds == 3.0
    assert measured_rates(folders, "a third, fp32")[work] == (1.1, 2, "another, fp32")
