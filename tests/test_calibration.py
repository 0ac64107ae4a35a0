"""Curves from predictions to probabilities: exact small cases, what holds for every curve, and calibration.json."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.isotonic
import sklearn.linear_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_torchrec.calibration.calibration_file import (
    BeforeAndAfter,
    Calibration,
    RowsOfLog,
    read_calibration,
    write_calibration,
)
from stem_torchrec.calibration.curves import Curve, IsotonicCurve, PlattCurve, calibrate, logits
from stem_torchrec.calibration.fit import NoCurveError, fit, fit_isotonic, fit_platt
from stem_torchrec.calibration.fit_tasks import fit_tasks
from stem_torchrec.calibration.judge import judge
from stem_torchrec.calibration.labeled_rows import LabeledRows
from stem_torchrec.calibration.rows_of_run import RowsOfRun
from stem_torchrec.checkpoints.checksum import weights_checksum
from stem_torchrec.config.formats import with_format
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.metrics.multi_task import MultiTaskMetrics
from stem_torchrec.runtime.errors import UserError

from fuzz.values import changed, damaged

ROUNDING = 1e-9
"""Of sums of some hundred float64 numbers, and of the root of a logistic regression that they give."""


def rows_of(predictions: list[float], labels: list[int], weights: list[float] | None = None) -> LabeledRows:
    return LabeledRows(
        np.arange(len(predictions)),
        np.array(predictions, np.float64),
        np.array(labels) == 1,
        np.ones(len(labels)) if weights is None else np.array(weights, np.float64),
    )


def drawn_rows(seed: int = 0, size: int = 500) -> LabeledRows:
    """Rows whose predictions are too high, with ties and weights."""
    generator = np.random.default_rng(seed)
    predictions = generator.beta(1, 5, size).round(3).clip(0.001, 0.999)
    return rows_of(
        predictions.tolist(), (generator.random(size) < predictions * 0.7).astype(int).tolist(), generator.random(size)
    )


def test_isotonic_levels_are_means_of_labels_and_never_0_or_1() -> None:
    curve = fit_isotonic(rows_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0, 1, 0, 0, 1, 1, 0]))
    assert curve.predictions == (0.1, 0.4, 0.5, 0.7)
    assert curve.probabilities == pytest.approx((1 / 4, 1 / 4, 2 / 3, 2 / 3))
    # In between the curve is straight, outside flat.
    assert calibrate([0, 0.25, 0.45, 0.6, 1], curve) == pytest.approx([1 / 4, 1 / 4, 11 / 24, 2 / 3, 2 / 3])


def test_isotonic_takes_equal_predictions_and_weights_together() -> None:
    curve = fit_isotonic(rows_of([0.2, 0.2, 0.6, 0.6], [0, 1, 0, 1], [3, 1, 1, 3]))
    assert (curve.predictions, curve.probabilities) == ((0.2, 0.6), (0.25, 0.75))
    # What separates the labels is no reason for a probability of 0 or 1.
    assert calibrate([0.1, 0.9], fit_isotonic(rows_of([0.2, 0.6], [0, 1]))) == pytest.approx([0.5, 0.5])


def test_isotonic_is_that_of_sklearn_between_its_levels_of_0_and_1() -> None:
    rows = drawn_rows()
    curve, theirs = fit_isotonic(rows), sklearn.isotonic.IsotonicRegression()
    expected = theirs.fit(rows.predictions, rows.positive, rows.weights).predict(rows.predictions)
    levels = np.unique(expected.round(12))
    # The lowest level of sklearn is 0 and the highest 1, which here join those beside them.
    assert (levels[0], levels[-1]) == (0, 1)
    inner = (expected > levels[1] + 1e-9) & (expected < levels[-2] - 1e-9)
    assert inner.sum() > 100
    assert calibrate(rows.predictions, curve)[inner] == pytest.approx(expected[inner], abs=ROUNDING)


def test_platt_is_exact_where_two_predictions_determine_both_numbers() -> None:
    # Of 4 rows at 0.2 one is 1, of 4 rows at 0.6 three are.
    curve = fit_platt(rows_of([0.2] * 4 + [0.6] * 4, [1, 0, 0, 0, 1, 1, 1, 0]))
    assert calibrate([0.2, 0.6], curve) == pytest.approx([0.25, 0.75], abs=ROUNDING)
    a = 2 * math.log(3) / (math.log(0.6 / 0.4) - math.log(0.2 / 0.8))
    assert (curve.a, curve.b) == pytest.approx((a, math.log(3) - a * math.log(0.6 / 0.4)), abs=1e-6)


def test_platt_is_the_logistic_regression_of_sklearn() -> None:
    rows = drawn_rows()
    theirs = sklearn.linear_model.LogisticRegression(C=math.inf, tol=1e-12, solver="newton-cholesky")
    theirs.fit(logits(rows.predictions)[:, None], rows.positive, rows.weights)
    curve = fit_platt(rows)
    assert (curve.a, curve.b) == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), abs=1e-6)


@pytest.mark.parametrize("predictions", [[0.6, 0.6, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]])
def test_platt_is_flat_where_higher_predictions_do_not_go_with_more_labels(predictions: list[float]) -> None:
    curve = fit_platt(rows_of(predictions, [0, 0, 0, 1]))
    assert (curve.a, curve.b) == pytest.approx((0, -math.log(3)))


def test_platt_refuses_predictions_that_separate_the_labels() -> None:
    for predictions in ([0.1, 0.2, 0.6, 0.9], [0.1, 0.5, 0.5, 0.9]):
        with pytest.raises(NoCurveError, match=r"^its predictions separate the labels 0 from the labels 1, which"):
            fit_platt(rows_of(predictions, [0, 0, 1, 1]))


SOME_ROWS = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.integers(0, 1), st.floats(0.1, 10)), min_size=2, max_size=60
).filter(lambda rows: len({label for _, label, _ in rows}) == 2)


@settings(max_examples=40, deadline=None)
@given(SOME_ROWS)
def test_a_curve_does_not_fall_stays_within_0_and_1_and_keeps_the_sum(rows: list[tuple[float, int, float]]) -> None:
    labeled = rows_of(*map(list, zip(*rows, strict=True)))
    grid = np.concatenate([np.linspace(0, 1, 101), np.sort(labeled.predictions)])
    for method in ("isotonic", "platt"):
        try:
            curve = fit(labeled, method)
        except NoCurveError:
            assert method == "platt"
            continue
        probabilities = calibrate(np.sort(grid), curve)
        assert (np.diff(probabilities) >= 0).all()
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        of_rows = labeled.calibrated(curve)
        assert judge(of_rows).pcoc == pytest.approx(1, abs=ROUNDING)
        if method == "isotonic":
            assert ((of_rows.predictions > 0) & (of_rows.predictions < 1)).all()


def test_judging_is_that_of_the_metrics_of_an_evaluation() -> None:
    rows = drawn_rows()
    metrics = MultiTaskMetrics(["like"], weighted=True)
    columns = (logits(rows.predictions), rows.positive, rows.weights)
    x, y, weights = (torch.from_numpy(column.astype(np.float32))[:, None] for column in columns)
    metrics.update(x, y, None, weights)
    expected, ours = metrics.compute()["like"], judge(rows)
    # Logits and weights in float32.
    assert (ours.ne, ours.pcoc) == pytest.approx((expected.ne, expected.pcoc), rel=1e-6)


def test_a_metric_that_labels_of_one_kind_leave_undefined_is_nan() -> None:
    zeros, ones = judge(rows_of([0.1, 0.3], [0, 0])), judge(rows_of([0.1, 0.3], [1, 1]))
    assert math.isnan(zeros.ne)
    assert math.isnan(zeros.pcoc)
    assert math.isnan(ones.ne)
    assert ones.pcoc == pytest.approx(0.2)
    assert math.isfinite(judge(rows_of([0.0, 1.0], [1, 0])).ne)


def test_predictions_outside_of_0_and_1_are_refused_and_nan_stays() -> None:
    for curve in (IsotonicCurve((0.5,), (0.3,)), PlattCurve(1.0, 0.0)):
        with pytest.raises(
            ValueError, match=r"^the prediction -0.5 is no probability; give numbers from 0 to 1, not l"
        ):
            calibrate([0.2, -0.5], curve)
        assert np.isnan(calibrate(np.array([[math.nan]]), curve)).tolist() == [[True]]
    assert calibrate([0.0, 1.0, 0.25], PlattCurve(1.0, 0.0)) == pytest.approx([0, 1, 0.25])
    assert calibrate([0.0, 1.0], PlattCurve(0.0, 0.0)).tolist() == [0.5, 0.5]


def write_predictions(folder: Path, tasks: dict[str, tuple[list[float | None], list[float]]], **more: list) -> None:
    """Predictions of two ranks: the second one has the first rows."""
    columns: dict[str, list] = {f"weight/{task}": weights for task, weights in more.items()}
    for task, (labels, predictions) in tasks.items():
        columns |= {f"label/{task}": labels, f"prediction/{task}": predictions}
    table = pa.table({"row": pa.array(range(len(predictions))), **columns})
    folder.mkdir(parents=True)
    half = len(table) // 2
    pq.write_table(table[half:], folder / "part-00000.parquet")
    pq.write_table(table[:half], folder / "part-00001.parquet")


FITTED, JUDGED = RowsOfLog("log", "valid", 0, 4, "f"), RowsOfLog("log", "valid", 4, 8, "f")


def test_curves_see_fitted_rows_only_and_leave_out_missing_labels_and_weights_of_0(tmp_path: Path) -> None:
    like = ([0, 1, None, 1, 1, 0, None, 0], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    write_predictions(tmp_path / "valid", {"like": like}, like=[3.0, 1.0, 1.0, 0.0, 3.0, 1.0, 1.0, 0.0])
    fitted = fit_tasks(tmp_path, RowsOfRun(("like",), FITTED, JUDGED), method="isotonic", weights="w")
    assert fitted.isotonic == {"like": IsotonicCurve((0.2,), (0.25,))}
    # Observed are 3 of 4, predicted 0.2 of 4 each before, and 0.25 after.
    result = fitted.judged["like"]
    assert (result.rows, result.positives) == (2, 1)
    assert (result.pcoc_before, result.pcoc_after) == pytest.approx((0.8 / 3, 1 / 3))


def test_a_task_that_no_curve_fits_keeps_its_predictions_and_the_file_says_why(tmp_path: Path) -> None:
    x = [0.1, 0.6, 0.2, 0.7] * 2
    tasks = {
        "like": ([0, 1, 1, 0, 0, 1, 0, 1], x),
        "buy": ([0, 0, 0, 0, 0, 1, 0, 1], x),
        "view": ([0, 1, 0, 1, 0, 1, 0, 1], x),
        "save": ([None, None, None, None, 0, 1, 0, 1], x),
    }
    write_predictions(tmp_path / "valid", tasks)
    rows = RowsOfRun(tuple(tasks), FITTED, JUDGED)
    separated = "its predictions separate the labels 0 from the labels 1, which --method isotonic takes"
    platt = fit_tasks(tmp_path, rows, method="platt", weights="w")
    assert platt.kept == {"buy": "all its labels are 0", "view": separated, "save": "it has no labels"}
    assert platt.curves.keys() == platt.judged.keys() == {"like"}
    isotonic = fit_tasks(tmp_path, rows, method="isotonic", weights="w")
    assert (isotonic.curves.keys(), isotonic.kept.keys()) == ({"like", "view"}, {"buy", "save"})
    with pytest.raises(UserError, match=r"^no task gets a curve from rows 0 to 3 of log/valid: 'buy' \(all its labels"):
        fit_tasks(tmp_path, replace(rows, tasks=("buy",)), method="platt", weights="w")
    with pytest.raises(
        UserError, match=r"^no task gets a curve from no row of log/valid: 'like' \(it has no labels\);"
    ):
        fit_tasks(tmp_path, replace(rows, fitted=replace(FITTED, stop=0), tasks=("like",)), method="platt", weights="w")


CALIBRATION = Calibration(
    weights="sha256:0123456789abcdef",
    fitted_on=FITTED,
    judged_on=JUDGED,
    isotonic={"like": IsotonicCurve((0.1, 1 / 3), (0.05, 0.2))},
    platt={"buy": PlattCurve(0.9, -0.1)},
    kept={"view": "all its labels are 0"},
    judged={"like": BeforeAndAfter(2, 1, None, 0.9, 1.1, 1.0)},
)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_calibration(tmp_path / "calibration.json", CALIBRATION)
    assert read_calibration(tmp_path / "calibration.json", weights=CALIBRATION.weights) == CALIBRATION
    assert json.loads((tmp_path / "calibration.json").read_text())["format"] == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "has the format 2, but this stem_torchrec reads formats up to 1"),
        ({"weights": 3}, "cannot be read (weights is 3, but must be text); fit it with stem-calibrate."),
        ({"platt": {"buy": {"a": -1.0, "b": 0.0}}}, "the curve of task 'buy': a is -1.0 and b is 0.0, but both must"),
        ({"isotonic": {"like": {"predictions": [0.1], "probabilities": []}}}, "it has 1 predictions and 0 probabil"),
        ({"isotonic": {"like": {"predictions": [0.1, 0.2], "probabilities": [0.3, 0.2]}}}, "must increase, its prob"),
        ({"isotonic": {"like": {"predictions": [0.1, 1.2], "probabilities": [0.1, 0.2]}}}, "all be from 0 to 1"),
    ],
)
def test_a_file_that_is_no_calibration_is_one_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    file = tmp_path / "calibration.json"
    write_calibration(file, CALIBRATION)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as error:
        read_calibration(file, weights=CALIBRATION.weights)
    assert str(error.value).startswith(str(file))
    assert sentence in str(error.value)


TEXT = json.dumps(with_format(to_dict(CALIBRATION), 1), indent=1)


@settings(max_examples=60, deadline=None)
@given(text=changed(json.loads(TEXT)).map(json.dumps) | damaged(TEXT))
def test_a_changed_file_is_refused_in_one_sentence_or_has_curves(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "changed_calibration.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    curves: dict[str, Curve] = {}
    refusal = f"{file} "
    try:
        curves = read_calibration(file, weights=None).curves
    except UserError as error:
        refusal = str(error)
    assert refusal.startswith(f"{file} ")
    assert len(refusal.splitlines()) == 1
    for curve in curves.values():
        probabilities = calibrate(np.linspace(0, 1, 101), curve)
        assert (np.diff(probabilities) >= 0).all()
        assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_curves_are_not_applied_to_other_weights(tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.mkdir()
    checksums = set()
    for first, second in (("a", "bc"), ("ab", "c"), ("a", "bd")):
        (best / "__0_0.distcp").write_text(first)
        (best / "__1_0.distcp").write_text(second)
        checksums.add(weights_checksum(best))
    (best / "__1_0.distcp").rename(best / "__2_0.distcp")
    checksums.add(weights_checksum(best))
    assert len(checksums) == 4
    write_calibration(tmp_path / "calibration.json", CALIBRATION)
    with pytest.raises(UserError, match=r"was fitted to other weights \(sha256:01234567\) than these \(sha256:"):
        read_calibration(tmp_path / "calibration.json", weights=weights_checksum(best))


def test_a_program_that_scores_reads_and_applies_curves_without_the_libraries_that_train(tmp_path: Path) -> None:
    write_calibration(tmp_path / "calibration.json", CALIBRATION)
    code = """
import sys
from pathlib import Path
from stem_torchrec.calibration.calibration_file import read_calibration
from stem_torchrec.calibration.curves import calibrate
curves = read_calibration(Path("calibration.json"), weights=None).curves
print(calibrate([0.05, 0.9], curves["like"]).tolist(), sorted(
    {"torch", "torchrec", "fbgemm_gpu", "scipy", "sklearn", "pandas"} & sys.modules.keys()
))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[0.05, 0.2] []\n"
