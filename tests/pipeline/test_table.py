"""The table of experiments: what a person compares, and what differs."""

from tesserae.pipeline.table import compared

COLUMNS = ("Experiment", "rev", "typ", "Created", "reports/vqgan-image/metrics.json:val_lpips", "val_bits",
           "reports/vqgan-image/metrics.json:val_lpips_low", "steps", "seed", "vqgan.image.lr",
           "params.yaml:transformer.class.condition", "src/tesserae/stage.py")


def experiment(*cells: str) -> dict[str, str]:
    return dict(zip(COLUMNS, cells))


def test_numbers_that_people_compare_and_parameters_that_differ():
    rows = [experiment("", "workspace", "baseline", "now", "0.2990821", "5.7", "0.2", "10", "0", "0.001", "[class]"),
            experiment("deep", "abc", "branch", "then", "0.31", "", "0.3", "10", "0", "0.002", "[class]")]
    assert compared(rows) == [
        ["", "workspace", "deep"],
        ["val_bits", "5.7", ""],
        ["vqgan-image val_lpips", "0.2991", "0.31"],
        ["vqgan.image.lr", "0.001", "0.002"],
    ]


def test_long_values_are_cut_and_no_experiments_make_a_head_alone():
    values = [experiment(*["x"] * 8, "0", "a" * 40, "", ""), experiment(*["x"] * 8, "0", "b", "", "")]
    assert compared(values)[-1] == ["vqgan.image.lr", "a" * 21 + "...", "b"]
    assert compared([]) == [[""]]
