"""AP50 counted anew under weights against `coco_ap` on sets in which images repeat; intervals on constructed cases."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from call_counter import num_calls
from parity.detection_sets import NAMES, SPECIAL_SETS, DetectionSet, large_set, random_set

from eval.bootstrap import Interval, ap50_of, class_curves, image_bootstrap, mean_interval, t_quantile
from eval.metrics import coco_ap

SQUARE = (0, 0, 100, 100)
FAR = (300, 300, 400, 400)
SETS = {f"seed {seed}": random_set(seed) for seed in range(60)} | SPECIAL_SETS


def coco_figures(annotations, detections):
    figures = [one.ap50 for one in coco_ap(annotations, detections, NAMES).per_class.values()]
    return np.array([math.nan if value is None else value for value in figures])


def repeated(one, times):
    """The set in which image number i stands times[i] times, under names of their own."""
    annotations, detections = [], []
    for annotation, found, count in zip(one.annotations, one.detections, times, strict=True):
        names = [f"{annotation.image_id} {copy}" for copy in range(count)]
        annotations += [replace(annotation, image_id=name) for name in names]
        detections += [found._replace(image_id=name) for name in names]
    return DetectionSet(annotations, detections)


def ap50_under(curves, weights):
    """AP50 of each class under one set of weights."""
    return ap50_of(curves, np.array([weights]))[0]


def same(actual, expected):
    return np.allclose(actual, expected, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("one", SETS.values(), ids=SETS.keys())
def test_weights_of_one_are_coco_ap(one):
    curves = class_curves(*one, NAMES)
    assert same(ap50_under(curves, np.ones(len(one.annotations))), coco_figures(*one))


def test_a_hundred_detections_of_an_image_and_class_are_looked_at(make_truth, make_found):
    truth = [make_truth("a", [[*SQUARE, 0, 0], [*SQUARE, 1, 0]])]
    wrong = [[*FAR, label, 0.9 - 0.001 * n] for label, count in ((0, 99), (1, 100)) for n in range(count)]
    found = [make_found("a", [*wrong, [*SQUARE, 0, 0.1], [*SQUARE, 1, 0.1]])]
    ap50 = ap50_under(class_curves(truth, found, NAMES), np.ones(1))
    assert ap50[:2] == pytest.approx([0.01, 0])
    assert same(ap50, coco_figures(truth, found))


def test_of_two_truths_met_alike_the_last_is_taken(make_truth, make_found):
    truth = [make_truth("a", [[30, 0, 130, 100, 0, 0], [70, 0, 170, 100, 0, 0]])]
    between, left, right = ([x, 0, x + 100, 100, 0] for x in (50, 20, 80))
    for other, expected in ((left, 1), (right, 51 / 101)):
        found = [make_found("a", [[*between, 0.9], [*other, 0.8]])]
        ap50 = ap50_under(class_curves(truth, found, NAMES), np.ones(1))
        assert ap50[0] == pytest.approx(expected)
        assert same(ap50, coco_figures(truth, found))


@pytest.mark.parametrize("seed", range(25))
def test_an_image_of_weight_k_stands_k_times(seed):
    one = random_set(seed).with_scores_apart()
    draw = np.random.default_rng(seed)
    weights = draw.integers(0, 4, (3, len(one.annotations)))
    curves = class_curves(*one, NAMES)
    many = ap50_of(curves, weights)
    assert many.shape == (3, len(NAMES))
    for row, times in zip(many, weights, strict=True):
        assert same(row, coco_figures(*repeated(one, times)))
        assert same(row, ap50_under(curves, times))
        assert same(row, ap50_under(curves, times / 4))  # only how they compare counts


def test_known_ap_under_weights(make_truth, make_found):
    truth = [make_truth("a", [[*SQUARE, 0, 0]]), make_truth("b", [[*SQUARE, 0, 0]]), make_truth("c")]
    found = [
        make_found("a", [[*SQUARE, 0, 0.9]]),
        make_found("b", [[*SQUARE, 0, 0.5]]),
        make_found("c", [[*FAR, 0, 0.7]]),
    ]
    curves = class_curves(truth, found, NAMES)
    # right, wrong, right: precision 1 up to recall 1/2 (51 points), 2/3 for the other 50
    assert ap50_under(curves, [1, 1, 1])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert ap50_under(curves, [1, 1, 0])[0] == pytest.approx(1)
    assert ap50_under(curves, [0, 1, 4])[0] == pytest.approx(1 / 5)
    assert math.isnan(ap50_under(curves, [0, 0, 2])[0])
    assert np.isnan(ap50_under(curves, np.ones(3))[1:]).all()  # the other classes have no truth


def test_what_the_curves_hold(make_truth, make_found):
    truth = [make_truth("a", [[*SQUARE, 0, 0], [*FAR, 0, 1]]), make_truth("b", [[*SQUARE, 1, 0]])]
    found = [make_found("a", [[*FAR, 0, 0.5], [*SQUARE, 0, 0.6]]), make_found("b", [[*SQUARE, 0, 0.75]])]
    curves = class_curves(truth, found, NAMES[:2])
    assert (curves.class_names, curves.image_ids) == (NAMES[:2], ("a", "b"))
    ant, bee = curves.per_class
    assert ant.scores.tolist() == pytest.approx([0.75, 0.6, 0.5])
    assert ant.is_right.tolist() == [False, True, False]
    assert ant.is_ignored.tolist() == [False, False, True]
    assert ant.images.tolist() == [1, 0, 0]
    assert (ant.n_gt.tolist(), bee.n_gt.tolist()) == ([1, 0], [0, 1])
    assert len(bee.scores) == 0


def test_no_images_no_classes_and_weights_of_other_images():
    nothing = class_curves([], [], NAMES)
    assert np.isnan(ap50_under(nothing, np.ones(0))).all()
    one = random_set(1)
    assert ap50_of(class_curves(*one, ()), np.ones((5, len(one.annotations)))).shape == (5, 0)
    with pytest.raises(ValueError, match="image_weights has 99 images"):
        ap50_under(class_curves(*one, NAMES), np.ones(99))


@pytest.fixture
def run_of(make_truth, make_found):
    """Which of a base and a novel object are found on each image, e.g. [(True, False), ...] -> Curves."""

    def make(hits):
        truth = [make_truth(f"{n}", [[*SQUARE, 0, 0], [*FAR, 1, 0]]) for n in range(len(hits))]
        found = [
            make_found(f"{n}", [[*SQUARE, 0, 0.9]] * base + [[*FAR, 1, 0.8]] * novel)
            for n, (base, novel) in enumerate(hits)
        ]
        return class_curves(truth, found, ("base", "novel"))

    return make


BASE_FIRST = [True, False]


def test_identical_methods_do_not_differ(run_of):
    run = run_of([(True, n % 2 == 0) for n in range(20)])
    for statistic in ("harmonic", "base", "novel", "all"):
        assert image_bootstrap(run, run, BASE_FIRST, 200, statistic=statistic) == Interval(0.0, 0.0, 0.0)
    bad = run_of([(True, False)])
    assert image_bootstrap(bad, bad, BASE_FIRST, 9) == Interval(0.0, 0.0, 0.0)  # a harmonic mean of 0


def test_better_on_every_image(run_of):
    better, worse = run_of([(True, True)] * 12), run_of([(True, n % 3 == 0) for n in range(12)])
    gain = image_bootstrap(better, worse, BASE_FIRST, 300)
    # novel: 4 of 12 found, none wrong: recall points 0 to .33
    novel = 34 / 101
    assert gain.mean == pytest.approx(1 - 2 * novel / (1 + novel))
    assert 0 < gain.low < gain.mean < gain.high <= 1
    lost = image_bootstrap(worse, better, BASE_FIRST, 300)
    assert lost == (pytest.approx(-gain.mean), pytest.approx(-gain.high), pytest.approx(-gain.low))
    assert image_bootstrap(better, worse, BASE_FIRST, 300, statistic="base") == Interval(0.0, 0.0, 0.0)
    novel_gain = image_bootstrap(better, worse, BASE_FIRST, 300, statistic="novel")
    assert novel_gain.mean == pytest.approx(1 - novel)
    assert image_bootstrap(better, worse, BASE_FIRST, statistic="all").mean == pytest.approx((1 - novel) / 2)
    assert image_bootstrap(better, worse, [False, True], statistic="base").mean == novel_gain.mean


@pytest.mark.parametrize("seed", [3, 13])
@pytest.mark.parametrize("statistic", ["harmonic", "base", "novel", "all"])
def test_images_are_drawn_with_replacement(seed, statistic):
    """Three images have 27 draws, of which the rarest come in 1 of 27 (3.7 %): the limits are the extremes."""
    one, other = (large_set(3, number) for number in (seed, seed + 1))
    sets = [DetectionSet(one.annotations, found) for found in (one.detections, other.detections)]
    sets[1] = DetectionSet(one.annotations, [  # half of what the first finds, and what lies elsewhere
        mine._replace(**{name: getattr(mine, name)[::2] for name in ("boxes", "scores", "labels")})
        for mine in one.detections
    ])  # fmt: skip
    sets = [
        DetectionSet(
            [replace(a, labels=a.labels % 4) for a in annotations],
            [found._replace(labels=found.labels % 4) for found in detections],
        ).with_scores_apart()
        for annotations, detections in sets
    ]
    is_base = [True, True, False, False]

    def slow(one):
        groups = coco_figures(*one).reshape(2, 2)
        if statistic == "all":
            return np.nanmean(groups)
        base, novel = (np.nanmean(group) for group in groups)
        if statistic == "harmonic":
            return 2 * base * novel / (base + novel)
        return base if statistic == "base" else novel

    draws = [np.bincount(draw, minlength=3) for draw in itertools.product(range(3), repeat=3)]
    gains = [slow(repeated(sets[0], times)) - slow(repeated(sets[1], times)) for times in draws]
    assert len({round(gain, 9) for gain in gains}) == 10
    runs = [class_curves(*one, NAMES) for one in sets]
    found = image_bootstrap(*runs, is_base, 4000, statistic=statistic)
    observed = slow(sets[0]) - slow(sets[1])
    assert found == (pytest.approx(observed), pytest.approx(min(gains)), pytest.approx(max(gains)))


def test_the_seed_decides(run_of):
    pair = run_of([(True, n % 2 == 0) for n in range(9)]), run_of([(n % 4 > 0, n < 3) for n in range(9)])
    first = image_bootstrap(*pair, BASE_FIRST, 50, seed=1)
    assert first == image_bootstrap(*pair, BASE_FIRST, 50, seed=1)
    assert first != image_bootstrap(*pair, BASE_FIRST, 50, seed=2)


def test_groups_without_truth(make_truth, make_found, run_of):
    good = run_of([(True, True)] * 3)
    assert image_bootstrap(good, good, [True, True], 20) == Interval(None, None, None)
    assert image_bootstrap(good, good, [True, True], 20, statistic="base") == Interval(0.0, 0.0, 0.0)
    nothing = class_curves([], [], NAMES)
    assert image_bootstrap(nothing, nothing, [True] * 4, 20, statistic="all") == Interval(None, None, None)
    # the novel object is on one image of ten; draws without that image say nothing and are left out
    truth = [make_truth("0", [[*FAR, 1, 0]])] + [make_truth(f"{n}", [[*SQUARE, 0, 0]]) for n in range(1, 10)]
    sees = [make_found("0", [[*FAR, 1, 0.9]])] + [make_found(f"{n}", [[*SQUARE, 0, 0.9]]) for n in range(1, 10)]
    blind = [make_found("0"), *sees[1:]]
    runs = [class_curves(truth, found, ("base", "novel")) for found in (sees, blind)]
    assert image_bootstrap(*runs, BASE_FIRST, 200) == Interval(1.0, 1.0, 1.0)


def test_runs_that_are_no_pairs(run_of, make_truth, make_found):
    two, three = run_of([(True, True)] * 2), run_of([(True, True)] * 3)
    with pytest.raises(ValueError, match="evaluated on different images"):
        image_bootstrap(two, three, BASE_FIRST)
    less = class_curves(
        [make_truth("0", [[*SQUARE, 0, 0]]), make_truth("1")], [make_found("0"), make_found("1")], ("base", "novel")
    )
    with pytest.raises(ValueError, match="different images, classes or ground truth"):
        image_bootstrap(two, less, BASE_FIRST)
    with pytest.raises(ValueError, match="is_base has 3 classes"):
        image_bootstrap(two, two, [True] * 3)
    with pytest.raises(ValueError, match="give one of harmonic, base, novel, all"):
        image_bootstrap(two, two, BASE_FIRST, statistic="median")
    with pytest.raises(ValueError, match="num_resamples=0"):
        image_bootstrap(two, two, BASE_FIRST, 0)


def test_a_thousand_resamples_are_quick():
    names = tuple("abcdefg")
    runs = []
    truth = None
    for seed in range(2):
        drawn = large_set(150, seed)
        truth = truth or [replace(one, labels=one.labels % 7) for one in drawn.annotations]
        runs.append(class_curves(truth, [one._replace(labels=one.labels % 7) for one in drawn.detections], names))
    calls = num_calls(image_bootstrap, *runs, [True] * 4 + [False] * 3)
    assert calls < 1000 * 2 * 7, "less than one call for each resample, run and class"


def test_mean_interval():
    assert mean_interval([]) == Interval(None, None, None)
    assert mean_interval([0.25]) == Interval(0.25, None, None)
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)
    half = 4.30265 / math.sqrt(3)  # standard deviation 1, two degrees of freedom
    assert mean_interval([1, 2, 3]) == (2.0, pytest.approx(2 - half, abs=1e-4), pytest.approx(2 + half, abs=1e-4))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_of_a_mean_covers_the_truth_in_95_per_cent(count):
    """Of 4,000 samples of a normal distribution. Four standard errors of that share are .014."""
    draw = np.random.default_rng(count)
    found = [mean_interval(sample) for sample in draw.normal(0.4, 0.1, (4000, count)).tolist()]
    assert np.mean([one.low <= 0.4 <= one.high for one in found]) == pytest.approx(0.95, abs=0.014)


@pytest.mark.parametrize("freedom", [*range(1, 31), 31, 40, 60, 120, 1000])
def test_t_quantile_has_two_and_a_half_per_cent_above_it(freedom):
    """The density of Student's t, integrated from 0 to the quantile by Simpson's rule, is .475."""
    at = np.linspace(0, t_quantile(freedom), 20001)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(at**2 / freedom))
    weights = np.ones(len(at))
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    area = float((density * weights).sum() * at[1] / 3)
    assert area == pytest.approx(0.475, abs=3e-6 if freedom <= 30 else 3e-4)
