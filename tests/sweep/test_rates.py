"""Rates of finished runs: which count for a run that is to come."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import TINY
from made_records import made_result

from phaseavg.runs.provenance import device_name
from phaseavg.sweep.rates import measured_rates, place_of, workload


def write_run(folder: Path, settings: Any, seconds: float, **execution: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.recipe()))
    result = made_result(folder.name, 5.0, **execution) | {"seconds": seconds, "epochs": 10}
    (folder / "result.json").write_text(json.dumps(result))


def test_rates_of_another_execution_do_not_count_for_a_budget(
    compose_settings: Any, tmp_path: Path
) -> None:
    plain = compose_settings(*TINY, "execution.device=cpu", "profile=deterministic")
    fast = compose_settings(*TINY, "execution.device=cpu", "profile=fast")
    name = device_name(torch.device("cpu"))
    assert place_of(plain) == f"{name}, fp32"
    assert place_of(fast) == f"{name}, fp32, channels last, not deterministic"
    here = {"device_name": name, "precision": "fp32"}
    for number, (took, options) in enumerate(
        [
            (50.0, here),
            (30.0, {**here, "channels_last": True, "deterministic": False}),
            (10.0, {"device_name": "another", "precision": "fp32"}),
            (12.0, {"device_name": "another", "precision": "fp32"}),
        ]
    ):
        write_run(tmp_path / str(number), plain, took, **options)
    work = workload(plain.recipe())
    assert measured_rates([tmp_path], place_of(plain))[work] == (5.0, 1, f"{name}, fp32")
    assert measured_rates([tmp_path], place_of(fast))[work].seconds == 3.0
    bf16 = f"{name}, bf16"
    assert measured_rates([tmp_path], bf16)[work].place.startswith(name)  # the nearest there is
    assert measured_rates([tmp_path], "a third, fp32")[work] == (1.1, 2, "another, fp32")
