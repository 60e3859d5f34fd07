"""Runs beside each other: what differs is found, what came of it is put in order."""

import math

import numpy as np
import pandas as pd
import pytest

from tesserae.evaluation import comparison

K, MULT = "params.vqgan.image.codebook_size", "params.vqgan.image.channel_mult"


def _runs(sizes=(64, 256, 256), mults=([1, 2], [1, 2], [1, 2, 4]), **columns):
    count = len(sizes)
    return pd.DataFrame({
        "run_id": [f"{number:032x}" for number in range(count)], "stage": "vqgan-image", "status": "FINISHED",
        "start_time": pd.to_datetime(["2030-01-01 10:00"] * count), "minutes": 2.04,
        K: list(sizes), MULT: list(mults), "params.vqgan.image.patch": 2, "params.seed": 0,
        "metrics.val_lpips": np.linspace(0.3, 0.1, count), "metrics.rec": 1.0,
        "metrics.images_per_second": 50.0, "metrics.best_step": 7.0} | columns)


EMPTY = pd.DataFrame(columns=["run_id", "stage", "status", "start_time", "minutes"])


def test_downsampling_and_rate_follow_from_the_parameters():
    table = comparison.add_derived(_runs())
    assert list(table["params.vqgan.image.downsampling"]) == [4, 4, 8]
    assert list(table["params.vqgan.image.bits_per_pixel"]) == [6 / 16, 8 / 16, 8 / 64]
    assert "params.vqgan.image.downsampling" not in _runs()


def test_the_rate_of_fsq_is_that_of_its_levels():
    runs = _runs(mults=([1], [1], [1]), **{"params.vqgan.image.quantizer": ["lfq", "nearest", "fsq"]})
    rates = comparison.add_derived(runs)["params.vqgan.image.bits_per_pixel"]
    assert list(rates) == pytest.approx([6 / 4, 8 / 4, math.log2(240) / 4])
    older = _runs(**{"params.vqgan.image.quantizer": ["fsq", None, math.nan]})  # 64 has levels, what is unknown has K
    assert list(comparison.add_derived(older)["params.vqgan.image.bits_per_pixel"]) == [6 / 16, 8 / 16, 8 / 64]


def test_runs_without_these_parameters_have_no_rate():
    runs = _runs(mults=([1, 2], None, [1]))
    assert math.isnan(comparison.add_derived(runs)["params.vqgan.image.downsampling"][1])
    assert comparison.add_derived(EMPTY).empty


def test_only_what_differs_is_listed_and_a_gap_is_a_difference():
    assert comparison.differing(_runs()) == [K, MULT]
    assert comparison.varied(_runs()) == [K]
    runs = _runs(sizes=(64, 64, 64), mults=([1], [1], [1]), **{"params.new": [1, None, 1]})
    assert comparison.differing(runs) == ["params.new"]
    assert comparison.differing(_runs().head(1)) == []


def test_labels_say_the_difference_in_the_papers_symbols_and_are_never_the_same():
    labels = list(comparison.labels(comparison.add_derived(_runs())).values())
    assert labels == ["K 64, f 4", "K 256, f 4", "K 256, f 8"]
    alike = list(comparison.labels(_runs(sizes=(64, 64), mults=([1], [1]))).values())
    assert alike[0] == "01 Jan 10:00"
    assert len(set(alike)) == 2


def test_a_label_of_many_parameters_is_cut():
    runs = _runs(**{f"params.name_{number}": [1, 2, 3] for number in range(20)})
    assert max(map(len, comparison.labels(runs).values())) <= 40


def test_the_overview_has_a_row_for_each_run():
    shown = comparison.overview(_runs(**{"tags.git.commit": "0123456789abcdef"}))
    assert list(shown["vqgan.image.codebook_size"]) == ["64", "256", "256"]
    assert list(shown["commit"]) == ["01234567"] * 3
    assert list(shown["minutes"]) == [2.0] * 3
    assert "seed" not in shown
    assert comparison.overview(EMPTY).empty


def test_results_are_a_column_for_each_run_held_out_metrics_first():
    table = comparison.results(_runs())
    assert list(table.index) == ["val_lpips", "rec"]
    assert list(table.loc["val_lpips"]) == pytest.approx([0.3, 0.2, 0.1])
    assert comparison.results(EMPTY).empty


def test_curves_are_metrics_that_move():
    moving = pd.DataFrame({"step": [0, 1, 2], "rec": [3.0, 2, 1], "val_lpips": [1, np.nan, 0.5],
                           "best_step": [np.nan, np.nan, 2], "images_per_second": [1.0, 1, 1], "lr": [1.0, 1, 1]})
    assert comparison.curve_names({"a": moving, "b": moving.rename(columns={"rec": "loss"})}) == [
        "val_lpips", "rec", "loss"]
    assert comparison.curve_names({}) == []


def test_axes_are_what_varies_and_what_was_wanted():
    runs = comparison.add_derived(_runs())
    assert comparison.axes(runs, ("downsampling", "codebook_size")) == (
        "params.vqgan.image.downsampling", "metrics.val_lpips", K)
    assert comparison.axes(runs, ("codebook_size", "rec"))[:2] == (K, "metrics.rec")
    assert comparison.axes(_runs().head(1)) == (None, "metrics.val_lpips", None)
    assert comparison.axes(EMPTY) == (None, None, None)


def test_a_seed_is_no_axis():
    runs = _runs(sizes=(64, 64, 64), mults=([1], [1], [1]), **{"params.seed": [0, 1, 2]})
    assert comparison.axes(runs)[0] is None


@pytest.mark.parametrize(("runs", "words"), [
    (EMPTY, "run dvc repro first"),
    (_runs().head(1), "nothing to compare"),
    (_runs(sizes=(64, 64), mults=([1], [1])), "all with the same parameters"),
    (_runs(), "they differ in vqgan.image.codebook_size, vqgan.image.channel_mult"),
])
def test_what_is_missing_is_said(runs, words):
    assert words in comparison.missing(runs, "vqgan-image")


def test_bounds_of_intervals_stand_in_the_table_and_are_no_axis():
    runs = _runs(**{"metrics.val_lpips_low": 0.1, "metrics.val_lpips_high": 0.4}).drop(columns="metrics.rec")
    assert list(comparison.results(runs).index) == ["val_lpips", "val_lpips_high", "val_lpips_low"]
    assert comparison.axes(runs.drop(columns="metrics.val_lpips"))[1] is None
    history = pd.DataFrame({"step": [1, 2], "val_lpips": [0.3, 0.2], "val_lpips_low": [0.2, 0.1]})
    assert comparison.curve_names({"a": history}) == ["val_lpips"]
