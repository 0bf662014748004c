"""Time per epoch, estimated from finished runs."""

from pathlib import Path
from typing import Any

import torch
from conftest import TINY
from made_records import change_result, make_record

from phaseavg.runs.provenance import device_name
from phaseavg.sweep.epoch_times import describe_device, median_epoch_times, workload


def test_times_on_the_same_device_and_execution_are_preferred(
    compose_settings: Any, tmp_path: Path
) -> None:
    plain = compose_settings(*TINY, "execution.device=cpu", "profile=deterministic")
    fp32 = "execution.precision=fp32"
    fast = compose_settings(*TINY, "execution.device=cpu", "profile=fast", fp32)
    name = device_name(torch.device("cpu"))
    assert describe_device(plain) == f"{name}, fp32"
    assert describe_device(fast) == f"{name}, fp32, channels last, not deterministic"
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
        change_result(make_record(plain, 5.0, where=folder, **options), seconds={"total": took})
    folders = [tmp_path / str(number) for number in range(4)]
    work = workload(plain.record())
    assert median_epoch_times(folders, describe_device(plain))[work] == (5.0, 1, f"{name}, fp32")
    assert median_epoch_times(folders, describe_device(fast))[work].seconds == 3.0
    elsewhere = compose_settings(*TINY, "execution.device=cuda:99")
    assert describe_device(elsewhere) == ""
    assert median_epoch_times(folders, describe_device(elsewhere))[work].runs == 2
    assert median_epoch_times(folders, "a third, fp32")[work] == (1.1, 2, "another, fp32")
