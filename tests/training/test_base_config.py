"""A config's `base`: its keys count unless overridden, in either layout; what is wrong with it is one line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sae_training import config

from transformer_lens_r1.shared.errors import UserError

NATIVE = """
model_name: a
model_from_pretrained_kwargs: {dtype: bfloat16, revision: old}
lr: 5.0e-5
sae: {d_in: 8, d_sae: 64, l1_coefficient: 5}
logger: {log_to_wandb: true, run_name: a}
"""
FLAT = """
model_name: a
hook_name: blocks.2.hook_resid_post
d_in: 8
expansion_factor: 8
l1_coefficient: 5
lr: 5.0e-5
b_dec_init_method: zeros
normalize_sae_decoder: false
scale_sparsity_penalty_by_decoder_norm: true
init_encoder_as_decoder_transpose: true
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that writes a file in a folder of configs."""

    def call(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return call


def test_a_file_overrides_single_keys_of_its_base_and_a_flag_those_of_both(write: Callable[[str, str], Path]) -> None:
    write("base.yaml", NATIVE)
    write("inner/middle.yaml", "base: ../base.yaml\nlr: 1.0e-3\nsae: {l1_coefficient: 3}\n")
    path = write(
        "inner/run.yaml",
        "base: middle.yaml\nsae: {d_sae: 128}\nlogger: {run_name: c}\nmodel_from_pretrained_kwargs: {revision: null}\n",
    )
    assert config.read_config(path, ["sae.d_sae=256"]) == {
        "model_name": "a",
        "model_from_pretrained_kwargs": {"dtype": "bfloat16", "revision": None},
        "lr": 1e-3,
        "sae": {"d_in": 8, "d_sae": 256, "l1_coefficient": 3},
        "logger": {"log_to_wandb": True, "run_name": "c"},
    }


@pytest.mark.parametrize(
    "child", ["l1_coefficient: 3\nd_sae: 40\nrun_name: b", "sae: {l1_coefficient: 3, d_sae: 40}\nlogger: {run_name: b}"]
)
def test_the_base_may_be_in_the_flat_layout(write: Callable[[str, str], Path], child: str) -> None:
    whole = FLAT.replace("expansion_factor: 8", "d_sae: 40").replace("l1_coefficient: 5", "l1_coefficient: 3")
    write("base.yaml", FLAT)
    path = write("run.yaml", f"base: base.yaml\n{child}\n")
    assert config.read_config(path) == config.read_config(write("whole.yaml", f"{whole}run_name: b\n"))


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        ("base: none.yaml", "run.yaml has the base .*none.yaml, and there is no such file"),
        ("base: circle.yaml", "go in a circle: .*run.yaml → .*circle.yaml → .*run.yaml"),
        ("base: run.yaml", "go in a circle"),
        ("base: 3", "base in .*run.yaml is 3"),
        ("base: base.yaml\nlrr: 3", "unknown key in the config: lrr; did you mean 'lr'"),
        ("base: base.yaml\nsae: {l1: 3}", "unknown key in the config: sae.l1"),
        ("base: base.yaml\nl1_coefficient: 3", "did you mean 'sae.l1_coefficient'"),
        ("base: base.yaml\nlr: {a: 3}", "lr.a: lr is a value, not a section"),
        ("base: empty.yaml", "empty.yaml holds no keys"),
    ],
)
def test_what_is_wrong_with_a_base_is_one_line(write: Callable[[str, str], Path], child: str, expected: str) -> None:
    write("base.yaml", NATIVE)
    write("circle.yaml", "base: run.yaml\n")
    write("empty.yaml", "")
    with pytest.raises(UserError) as caught:
        config.read_config(write("run.yaml", child + "\n"))
    assert re.search(expected, str(caught.value)) and "\n" not in str(caught.value)
