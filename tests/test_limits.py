"""Every number that a user can give has limits: without them nan, infinity and 10^9 reach the code behind it."""

import runpy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from stem_torchrec.calibration.calibrate_run import CalibrateConfig
from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.fields import limits_in
from stem_torchrec.inspection.options import InspectOptions
from stem_torchrec.models.table import all_options
from stem_torchrec.training.run_evaluation import EvaluateConfig
from stem_torchrec.transfer.convert_layout import ConvertConfig
from stem_torchrec.tuning.options import TuneConfig

from common.table_list import TableSpec
from contest.run import ThroughputConfig
from planning.config import PlanConfig
from prequential.options import DaysOptions
from recovery.pauses import PauseConfig
from recovery.soak import FaultsConfig
from studies.exact_metrics import MetricsConfig
from studies.task_conflict import ConflictConfig
from sweep.config import SweepConfig

DATASETS = Path(__file__).parent.parent / "datasets"
COMMANDS = [
    *(TrainConfig, EvaluateConfig, CalibrateConfig, ConvertConfig, CompareConfig, InspectOptions, TuneConfig),
    *all_options().values(),
]
BENCHMARKS = [
    *(SweepConfig, PlanConfig, ThroughputConfig, PauseConfig, FaultsConfig, MetricsConfig, ConflictConfig),
    DaysOptions,
]


def numbers_in(annotation: Any) -> bool:
    return annotation in (int, float) or any(numbers_in(part) for part in get_args(annotation))


def without_limits(kind: type, prefix: str = "") -> list[str]:
    names = []
    for field in fields(kind):
        annotation = get_type_hints(kind, include_extras=True)[field.name]
        if is_dataclass(annotation):
            names += without_limits(annotation, f"{field.name}.")
        elif numbers_in(annotation) and limits_in(annotation) is None:
            names.append(prefix + field.name)
    return names


@pytest.mark.parametrize("kind", [*COMMANDS, *BENCHMARKS, TableSpec], ids=lambda kind: kind.__name__)
def test_every_number_of_a_command_has_limits(kind: type) -> None:
    assert without_limits(kind) == []


@pytest.mark.parametrize("script", ["synthetic.py", "synthetic_days.py", "kuairand.py"])
def test_every_number_of_a_data_set_has_limits(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATASETS))
    assert without_limits(runpy.run_path(str(DATASETS / script))["Options"]) == []
