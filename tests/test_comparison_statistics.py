"""The statistics of a comparison against plain formulas, and how a report shows them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from stem_torchrec.comparison.comparable import bin_of_rows, name_bins
from stem_torchrec.comparison.intervals import (
    Interval,
    Ranking,
    UserCounts,
    auc_of,
    gauc_of,
    logloss_of,
)
from stem_torchrec.comparison.multiplicity import adjust, describe_family, draws_for
from stem_torchrec.comparison.report import dots, show, spread
from stem_torchrec.comparison.resampling import Resampled, resample
from stem_torchrec.runtime.report_file import Markup, Report, escape


def interval(low: float, *, p: float) -> Interval:
    """A difference of 0.01, whose interval ends at 0.03."""
    return Interval(0.01, low, 0.03, p, p, level=0.05)


def test_a_weighted_auc_is_that_of_the_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 20, 300).astype(float)  # With ties.
    positive = generator.random(300) < 0.3
    weights = generator.integers(0, 4, 300)
    for each in (scores, scores + generator.random(300) / 2):  # With ties and without.
        ranking = Ranking(each, positive)
        expected = roc_auc_score(np.repeat(positive, weights), np.repeat(each, weights))
        assert ranking.auc(weights[ranking.order]) == pytest.approx(expected, abs=1e-12)
        assert math.isnan(ranking.auc(ranking.positive.astype(int)))
    assert math.isnan(Ranking(np.empty(0), np.empty(0, dtype=bool)).auc(np.empty(0)))


def test_gauc_is_the_mean_over_the_drawn_users_by_their_rows() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 400).astype(float)  # With ties.
    users = np.sort(generator.integers(0, 60, 400))
    generator.shuffle(users)
    _, user = np.unique(users, return_inverse=True)
    positive = generator.random(400) < 0.2
    draws = generator.integers(0, 3, user.max() + 1)
    total = weight = 0.0
    for i, times in enumerate(draws):
        rows = user == i
        if 0 < positive[rows].sum() < rows.sum():
            total += times * rows.sum() * roc_auc_score(positive[rows], scores[rows])
            weight += times * rows.sum()
    measure = gauc_of(scores, positive, user)
    assert measure(draws) == pytest.approx(total / weight, abs=1e-12)
    assert math.isnan(measure(np.zeros_like(draws)))
    nothing = np.empty(0, dtype=int)
    assert math.isnan(gauc_of(np.empty(0), np.empty(0, dtype=bool), nothing)(nothing))


def test_measures_weigh_rows_as_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(1, 8, 300) / 8  # With ties.
    user = np.unique(generator.integers(0, 40, 300), return_inverse=True)[1]
    positive = generator.random(300) < 0.3
    times = generator.integers(1, 4, 300)
    repeated = [np.repeat(each, times) for each in (scores, positive, user)]
    draws = generator.integers(0, 3, user.max() + 1)
    for measure in (auc_of, gauc_of, logloss_of):
        weighted = measure(scores, positive, user, times / 2)(draws)
        assert weighted == pytest.approx(measure(*repeated)(draws), abs=1e-12)
        assert abs(weighted - measure(scores, positive, user)(draws)) > 1e-3


def differences(
    scores: dict[str, list[np.ndarray]], positive: np.ndarray, users: np.ndarray, resamples: int
) -> dict[str, Interval]:
    """By AUC, with intervals of 90 %."""
    measures = {model: [auc_of(s, positive, users) for s in by_seed] for model, by_seed in scores.items()}
    drawn = resample(measures, users.max() + 1, resamples=resamples, confidence=0.9)
    return {model: drawn.difference(model, "a") for model in scores}


def simulated(difference: float, seed: int) -> tuple[dict[str, list[np.ndarray]], np.ndarray, np.ndarray]:
    """Two models on rows of 200 users who differ: the second sees the signal better by `difference`."""
    generator = np.random.default_rng(seed)
    users = np.repeat(np.arange(200), 10)
    signal = generator.normal(size=2000) + generator.normal(size=200)[users]
    positive = generator.random(2000) < 1 / (1 + np.exp(-signal))
    noise = generator.normal(size=(2, 2000))
    return {"a": [signal + noise[0]], "b": [(1 + difference) * signal + noise[1]]}, positive, users


def test_an_interval_covers_the_true_difference_as_often_as_its_confidence() -> None:
    """Over 60 data sets without a difference, a 90 % interval excludes 0 in 6; binomial 99.9 % is 0 to 14.

    With one seed only users are drawn.
    """
    wrong = 0
    for seed in range(60):
        scores, positive, users = simulated(0.0, seed)
        wrong += differences(scores, positive, users, 200)["b"].verdict != "within noise"
    assert wrong <= 14
    scores, positive, users = simulated(1.0, 0)
    intervals = differences(scores, positive, users, 200)
    assert intervals["b"].verdict == "better"
    assert intervals["a"].value == intervals["a"].low == intervals["a"].high == 0
    expected = roc_auc_score(positive, scores["b"][0]) - roc_auc_score(positive, scores["a"][0])
    assert intervals["b"].value == pytest.approx(expected, abs=1e-12)


def test_seeds_are_drawn_as_well_and_one_user_has_no_interval() -> None:
    scores, positive, users = simulated(0.0, 0)
    (lucky,), (unlucky,) = scores["b"], simulated(-0.5, 0)[0]["b"]
    by_seed = {"a": [scores["a"][0]] * 2, "b": [lucky, unlucky]}
    both = differences(by_seed, positive, users, 200)["b"]
    alone = differences({model: [by_seed[model][0]] for model in by_seed}, positive, users, 200)["b"]
    assert both.high - both.low > 1.3 * (alone.high - alone.low)
    single = differences(by_seed, positive, np.zeros(len(users), dtype=int), 9)
    assert math.isnan(single["b"].low)
    assert single["b"].verdict == "undefined"


def drawn_differences(*values: float) -> Resampled:
    """A model whose difference to `base` is 0.1, and in the draws `values`."""
    drawn = {"model": np.array(values), "base": np.zeros(len(values))}
    return Resampled({"model": 0.1, "base": 0.0}, drawn, confidence=0.95)


def test_a_p_value_counts_draws_beyond_zero_and_is_never_zero() -> None:
    for values, p in (
        ([0.1] * 9, 2 / 10),  # None of nine draws is on the other side.
        ([0.1] * 99, 2 / 100),
        ([0.1] * 98 + [-0.1], 4 / 100),
        ([-0.1] * 99, 2 / 100),
        ([0.1, -0.1] * 10, 1.0),
        ([0.0] * 9, 1.0),
        ([0.1] * 9 + [math.nan] * 5, 2 / 10),  # A draw without a positive has no difference.
    ):
        assert drawn_differences(*values).difference("model", "base").p == pytest.approx(p)
    assert math.isnan(drawn_differences().difference("model", "base").p)
    assert drawn_differences(*[0.1] * 38).difference("model", "base").verdict == "within noise"  # p is 2 / 39.
    assert drawn_differences(*[0.1] * 39).difference("model", "base").verdict == "better"


def test_verdicts_come_from_p_values_adjusted_for_the_family() -> None:
    ps = {"a": 0.004, "b": 0.02, "c": 0.015, "none": math.nan}
    family = {name: interval(0.001, p=p) for name, p in ps.items()}
    family["none"] = replace(family["none"], low=math.nan, high=math.nan)
    # Holm: the smallest times 3, the next times 2, the last as it is, and never falling.
    holm = adjust(family, "holm")
    assert {name: each.adjusted for name, each in holm.items()} == pytest.approx(
        {"a": 0.012, "c": 0.03, "b": 0.03, "none": math.nan}, nan_ok=True
    )
    assert {name: each.p for name, each in holm.items()} == pytest.approx(ps, nan_ok=True)
    rates = adjust(family, "benjamini_hochberg")
    assert [rates[name].adjusted for name in ("a", "b", "c")] == pytest.approx([0.012, 0.02, 0.02])
    many = adjust({i: interval(0.001, p=0.004) for i in range(20)}, "holm")
    assert {each.verdict for each in many.values()} == {"within noise"}
    assert holm["none"].verdict == "undefined"
    assert adjust({}, "holm") == {}


def test_a_family_says_its_size_and_when_its_draws_are_too_few() -> None:
    family = {i: interval(0.001, p=0.01) for i in range(54)}
    draws = draws_for(54, 0.95)
    assert draws == 2160
    assert 54 * 2 / (draws + 1) <= 0.05 < 54 * 2 / draws + 1e-4
    assert (draws_for(3, 0.95), draws_for(300, 0.999)) == (1000, 20_000)
    text = describe_family(family, "holm", draws=draws, confidence=0.95)
    assert text == (
        "The family has 54 comparisons, whose p-values are adjusted by Holm's method; intervals and p-values come from "
        "2,160 draws. The smallest p-value that so many draws allow is 0.00093, times 54 it is 0.05."
    )
    text = describe_family(family, "holm", draws=200, confidence=0.95)
    assert text.endswith(
        "allow is 0.01, times 54 it is 0.54 and above 0.05, so with so few draws none stands out on its own; give "
        "--resamples 2160 or more."
    )
    assert describe_family({}, "holm", draws=1000, confidence=0.95).endswith("come from 1,000 draws.")


def test_logloss_is_that_of_the_repeated_rows_and_less_is_better() -> None:
    generator = np.random.default_rng(0)
    user = generator.integers(0, 40, 300)
    scores, positive = generator.random(300), generator.random(300) < 0.3
    draws = generator.integers(0, 4, 40)
    expected = log_loss(np.repeat(positive, draws[user]), np.repeat(scores, draws[user]))
    assert logloss_of(scores, positive, user)(draws) == pytest.approx(expected, abs=1e-12)
    sure = logloss_of(np.array([1.0]), np.array([False]), np.array([0]))(np.array([1]))
    assert sure == pytest.approx(-math.log(1e-16))
    good, bad = np.where(positive, 0.9, 0.1), np.where(positive, 0.6, 0.4)
    measures = {name: [logloss_of(s, positive, user)] for name, s in (("good", good), ("bad", bad))}
    drawn = resample(measures, 40, resamples=50, confidence=0.9, lower_is_better=True)
    assert drawn.difference("good", "bad").verdict == "better"
    assert drawn.difference("bad", "good").verdict == "worse"


def test_users_are_counted_by_the_labels_that_they_have() -> None:
    user = np.array([0, 0, 1, 2, 2, 3, 3])
    positive = np.array([True, False, True, False, False, True, True])
    assert UserCounts.count(positive, user) == UserCounts(positives=3, negatives=2, both=1)
    nothing = np.empty(0, dtype=int)
    assert UserCounts.count(nothing.astype(bool), nothing) == UserCounts(0, 0, 0)


def test_an_edge_belongs_to_the_bin_above_it() -> None:
    names = name_bins(("like", "view"), (0.5, 2.0))
    ratios = np.array([math.nan, 0.0, 0.1, 0.5, 1.9, 2.0, math.inf])
    assert [names[i] for i in bin_of_rows(ratios, (0.5, 2.0))] == [
        "no positives",
        "only view",
        "0 to 0.5",
        "0.5 to 2",
        "0.5 to 2",
        "2 to inf",
        "only like",
    ]


def test_cells_show_how_many_seeds_count_and_whether_there_is_an_interval() -> None:
    assert spread([0.5, None, 0.7]) == "0.6000 ± 0.1414 (2 of 3)"
    assert spread([None]) == "-"
    assert show(replace(interval(math.nan, p=math.nan), high=math.nan)) == "+0.0100"
    assert show(replace(interval(math.nan, p=math.nan), value=math.nan)) == "-"
    inside, outside = show(interval(-0.02, p=0.3)), show(interval(0.005, p=0.00049))
    assert inside == "+0.0100 [-0.0200, +0.0300] p 0.3, 0.3"
    assert outside == "**+0.0100 [+0.0050, +0.0300]** p 0.00049, 0.00049"
    assert show(replace(interval(0.005, p=0.02), adjusted=0.06)) == "+0.0100 [+0.0050, +0.0300] p 0.02, 0.06"


def test_names_are_escaped_in_the_page(tmp_path) -> None:
    report = Report("Comparison")
    description = "<script>alert(1)</script> of [me](javascript:x),\n\n# mine and `__a__`"
    report.text(f"Log: {escape(description)}")
    report.table([{"a|b": "_x_ <b>", "c": Markup("**+1**")}])
    report.plot("p", dots({"a": {"b": interval(0.0, p=0.1)}}, ""), "a]b_: AUC")
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; of [me](javascript:x), # mine and `__a__`" in page
    assert "<figcaption>a]b_: AUC</figcaption><svg " in page
    assert ">a|b</th>" in page
    assert ">_x_ &lt;b&gt;</td>" in page
    assert "<strong>+1</strong>" in page
    assert "<script" not in page
