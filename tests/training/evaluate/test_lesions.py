"""What is kept of small lesions, on cases whose answer is known."""

import csv
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.soft_sense import SoftSense
from dpmtrain.evaluate import baselines
from dpmtrain.evaluate import lesions as command
from dpmtrain.evaluate.lesion_scores import (
    BANDS,
    RING,
    Lesion,
    auc,
    bands,
    contrast,
    gain_and_nrmse,
    half_interval,
    invented,
    lesion_scores,
    observed,
    order,
    painted,
    places,
)
from dpmtrain.evaluate.score_lines import ScoreLines
from scipy import ndimage, stats

from support.phantoms import even_head

SHAPE = (61, 48)
LESIONS = [Lesion(14, 13, 1.3, 0.6), Lesion(15.5, 34, 2.6, -0.4), Lesion(44, 22.2, 0.4, 0.5)]


def tissue(seed=0):
    rng = np.random.default_rng(seed)
    return (0.8 + 0.05 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)).astype(np.float32)


@pytest.mark.parametrize("radius", [0.4, 1.5, 3.2])
def test_a_lesion_covers_the_area_of_its_disc(radius):
    assert Lesion(20.3, 17, radius, 1.0).fraction(SHAPE).sum() == pytest.approx(math.pi * radius**2, rel=0.05)


@pytest.mark.parametrize("lesion", LESIONS)
def test_the_contrast_of_a_disc_on_even_tissue_is_its_height_by_its_share_of_the_pixels(lesion):
    even = np.full(SHAPE, 0.5, np.float32)
    fraction = lesion.fraction(SHAPE)
    wanted = 0.5 * lesion.height * np.square(fraction).sum() / fraction.sum()
    assert contrast(painted(even, [lesion]), lesion) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_what_keeps_half_of_a_lesion_has_half_its_contrast_and_half_its_height(share):
    without = tissue()
    with_lesions = painted(without, LESIONS)
    kept = without + share * (with_lesions - without)
    for score in lesion_scores((kept, without), (with_lesions, without), LESIONS):
        assert score["contrast"] == pytest.approx(share, abs=1e-4)
        assert score["present"] == pytest.approx(share, abs=1e-4)
        assert score["absent"] == 0


def test_the_observer_does_not_see_a_change_of_all_the_surroundings():
    even = np.full(SHAPE, 0.5, np.float32)
    assert observed(even + 0.1, even, LESIONS[0]) == pytest.approx(0, abs=1e-5)


def test_an_observer_of_equal_distributions_has_an_auc_of_a_half():
    same = list(np.random.default_rng(0).normal(size=50))
    assert auc(same, same) == 0.5
    assert auc([2, 3], [0, 1]) == 1
    assert auc([0, 1], [2, 3]) == 0
    present, absent = np.random.default_rng(1).integers(0, 9, (2, 31))
    pairs = stats.mannwhitneyu(present, absent).statistic
    assert order(present, absent).sum() == pytest.approx(pairs)  # half a pair for each tie


def test_an_observer_of_gaussian_statistics_has_the_auc_of_their_distance():
    rng, count, distance = np.random.default_rng(1), 2000, 1.2
    found = auc(rng.normal(distance, 1, count), rng.normal(0, 1, count))
    assert found == pytest.approx(stats.norm.cdf(distance / math.sqrt(2)), abs=4 * 0.5 / math.sqrt(count))


@pytest.mark.parametrize("shared", [0.0, 0.8], ids=["independent", "one noise in both"])
def test_the_interval_holds_the_true_auc_in_95_of_100_studies(shared):
    """shared: correlation of the two scores of a draw."""
    rng, draws, studies, distance = np.random.default_rng(3), 97, 600, 1.0
    mean = [distance, 0.0]
    truth = stats.norm.cdf(distance / math.sqrt(2))
    held = 0
    for _ in range(studies):
        found = order(*rng.multivariate_normal(mean, [[1, shared], [shared, 1]], draws).T)
        held += abs(found.mean() - truth) <= half_interval(found)
    assert held / studies == pytest.approx(0.95, abs=0.035)


def test_the_interval_of_a_difference_is_narrow_where_two_methods_see_the_same():
    rng = np.random.default_rng(4)
    present, absent = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    one = order(present, absent)
    other = order(present + 0.1 * rng.normal(size=50), absent)
    assert half_interval(one - one) == 0
    assert 0 < half_interval(one - other) < 0.5 * half_interval(one)


def test_the_matched_filter_of_white_noise_has_the_auc_that_theory_gives():
    even, lesion, sigma = np.full(SHAPE, 1.0), Lesion(30, 24, 1.5, 0.3), 0.35
    rng = np.random.default_rng(2)
    pairs = [(painted(even, [lesion]) + n1, even + n2) for n1, n2 in sigma * rng.normal(size=(800, 2, *SHAPE))]
    scores = [lesion_scores(pair, (painted(even, [lesion]), even), [lesion])[0] for pair in pairs]
    fraction, ring = lesion.fraction(SHAPE), lesion.ring(SHAPE)
    signal = fraction - ring * fraction.sum() / ring.sum()
    distance = lesion.height * np.square(fraction).sum() / (sigma * np.linalg.norm(signal))
    found = auc([score["present"] for score in scores], [score["absent"] for score in scores])
    assert found == pytest.approx(stats.norm.cdf(distance / math.sqrt(2)), abs=4 * 0.5 / math.sqrt(800))


@pytest.mark.parametrize("sign", [1, -1])
def test_lesions_that_are_not_there_are_counted(sign):
    even = np.full(SHAPE, 0.8)
    extra = [Lesion(15, 15, 1.5, 0.5 * sign), Lesion(40, 30, 1.5, 0.2 * sign)]
    assert invented(even, even, 0.3) == 0
    assert invented(painted(even, extra), even, 0.3) == 1
    assert invented(painted(even, extra), even, 0.15) == 2


def test_every_band_of_a_scaled_truth_has_its_factor_as_gain():
    truth = np.random.default_rng(3).normal(size=SHAPE)
    for gain, error in gain_and_nrmse(bands(0.7 * truth, truth)):
        assert (gain, error) == pytest.approx((0.7, 0.3))
    sums = bands(truth, truth)
    assert len(sums) == len(BANDS) - 1
    assert sums[:, 1].sum() == pytest.approx(np.square(truth).sum())


def test_lesions_lie_in_tissue_and_do_not_touch():
    image = np.zeros(SHAPE, np.float32)
    image[5:55, 4:44] = tissue()[5:55, 4:44]
    found = places(image, 6, 2.0)
    assert len(found) == 6
    gaps = np.linalg.norm(found[:, None] - found[None], axis=-1) + 99 * np.eye(6)
    assert gaps.min() > 4 + RING[1]
    assert all(image[row, col] > 0 for row, col in found)
    assert len(places(np.zeros(SHAPE, np.float32), 6, 2.0)) == 0


@pytest.fixture
def slice_of_tissue(monkeypatch):
    head = even_head()
    monkeypatch.setattr(command, "tissue_of", lambda images, contrast: head)
    return head


def test_both_scans_of_a_draw_have_the_same_noise_and_draws_have_others(slice_of_tissue):
    first, again, other = (command.pair_of("", "t1", 20.0, draw) for draw in (3, 3, 4))
    assert first.lesions == again.lesions
    assert first.lesions != other.lesions
    assert torch.equal(first.mapped[0].data.kspace, again.mapped[0].data.kspace)
    assert np.allclose(first.truths[0], painted(slice_of_tissue, first.lesions), atol=1e-5)
    assert np.allclose(first.truths[1], slice_of_tissue, atol=1e-5)
    images = first.images(command.zero_filled)
    assert np.vdot(images[0], first.truths[0]) == pytest.approx(np.vdot(images[0], images[0]), rel=1e-4)


def test_a_slice_without_room_says_so(monkeypatch):
    monkeypatch.setattr(command, "tissue_of", lambda images, contrast: np.zeros((128, 128), np.float32))
    with pytest.raises(BadInputError, match="has room for 0 of 12"):
        command.pair_of("", "dwi", 10.0, 0)


def test_more_weight_of_total_variation_loses_lesions(slice_of_tissue):
    pair = command.pair_of("", "dwi", 50.0, 0)
    means = []
    for weight in (0.001, 0.3):
        images = pair.images(lambda mapped, weight=weight: baselines.total_variation(mapped, weight))
        scores = lesion_scores(images, pair.truths, pair.lesions)
        means.append(np.mean([score["contrast"] for score in scores]))
    assert means[0] > 0.5 > means[1]


@pytest.mark.parametrize("method", [baselines.total_variation, baselines.l1_wavelet_sigpy])
def test_what_takes_one_set_of_maps_gets_the_first_of_two(slice_of_tissue, method):
    one = command.pair_of("", "dwi", 50.0, 0).mapped[0]
    maps = torch.stack([one.model.coil_maps, torch.zeros_like(one.model.coil_maps)])
    two = replace(one, model=SoftSense(maps, one.model.mask))
    images = [method(mapped, 0.01) for mapped in (one, two)]
    # sigpy's steps begin with a random estimate of the largest singular value
    assert torch.linalg.vector_norm(images[1] - images[0]) < 0.01 * torch.linalg.vector_norm(images[0])


def test_the_best_peer_is_neither_zero_filled_nor_a_model():
    def scored(shift):
        return [{"lesions": [{"present": shift + n, "absent": float(n)}]} for n in range(5)]

    drawn = {"zero-filled": scored(4), "CG-SENSE": scored(1.5), "TV": scored(0.5), "model": scored(3)}
    assert np.array_equal(command.best_peer(drawn, ["model"]), command.orders(drawn["CG-SENSE"]))


def test_the_command_goes_on_with_what_is_there(slice_of_tissue, monkeypatch, tmp_path, capsys):
    calls = []

    def methods(images, contrast, snr, checkpoints, lines):
        def make(mapped):
            calls.append(snr)
            return command.zero_filled(mapped)

        yield "zero-filled", "", make
        yield "CG-SENSE", "", command.zero_filled

    monkeypatch.setattr(command, "methods", methods)
    monkeypatch.setattr(command, "picture", lambda *args: None)
    for draws, made in ((2, 4), (3, 2)):
        calls.clear()
        line = f"lesions --images . --out {tmp_path} --contrasts t1 --snr 20 --draws {draws}"
        monkeypatch.setattr(sys, "argv", line.split())
        command.main()
        assert len(calls) == made
        row, peer = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
        assert (row["contrast"], row["SNR"], row["draws"]) == ("t1", "20", str(draws))
        assert row["AUC"] == peer["AUC"]
        assert row["over peer"] == peer["over peer interval"] == "0"
        assert "| t1 | 20 | zero-filled |" in capsys.readouterr().out
    calls.clear()
    monkeypatch.setattr(command, "tissue_of", lambda images, contrast: 1.1 * slice_of_tissue)
    command.main()  # of other images
    assert len(calls) == 6


def test_weights_are_those_of_the_images_at_hand(slice_of_tissue, monkeypatch, tmp_path):
    tried = []
    monkeypatch.setattr(baselines, "tuned_weight", lambda error, start: (tried.append(start) or start[0], {}))
    lines = ScoreLines(tmp_path / "scores.jsonl")
    for head, count in ((slice_of_tissue, 3), (slice_of_tissue, 0), (1.1 * slice_of_tissue, 3)):
        monkeypatch.setattr(command, "tissue_of", lambda images, contrast, head=head: head)
        tried.clear()
        assert len(list(command.methods(tmp_path, "t1", 20.0, [], lines))) == 4
        assert len(tried) == count
