"""A run that was cut off within a task: what it had generated is not generated again, and the result is the same."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import read_run
from lm_eval.models.huggingface import HFLM

from lm_eval_sae.cli import main
from lm_eval_sae.engines.kept_completions import FOLDER, kept_in, unfinished_of

SAMPLED = "do_sample=True,temperature=0.8,max_gen_toks=6"


@pytest.fixture
def command(tiny_llama: Path, problems: Path, make_sae: Callable[..., Path]) -> Callable[..., list[str]]:
    """Six problems in three batches, sampled, steered."""
    sae = make_sae("standard")

    def make(output: Path, strength: float = 2.0, gen_kwargs: str = SAMPLED) -> list[str]:
        steering = f"sae_path={sae},sae_feature_idx=40,sae_strength={strength},sae_max_activation=6.5"
        return [
            "--model", "hf", "--model_args", f"pretrained={tiny_llama},dtype=float32,{steering}", "--device", "cpu",
            "--tasks", "quickstart_problems", "--metadata", f"problems={problems}", "--batch_size", "2",
            "--log_samples", "--output_path", str(output), "--gen_kwargs", gen_kwargs,
        ]  # fmt: skip

    return make


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command line and returns how many batches transformers generated; the run is cut off at `cut_at`."""
    generate = HFLM._model_generate

    def run(words: list[str], *, cut_at: int | None = None) -> int:
        generated = 0

        def counted(self: HFLM, *args: Any, **kwargs: Any) -> Any:
            nonlocal generated
            generated += 1
            if generated == cut_at:
                raise KeyboardInterrupt
            return generate(self, *args, **kwargs)

        monkeypatch.setattr(HFLM, "_model_generate", counted)
        with contextlib.nullcontext() if cut_at is None else pytest.raises(KeyboardInterrupt):
            main(words)
        return generated

    return run


def test_a_run_cut_off_within_a_task_continues_to_the_same_samples(
    command: Callable[..., list[str]], batches: Callable[..., int], tmp_path: Path
) -> None:
    assert batches(command(tmp_path / "whole")) == 3 and not (tmp_path / "whole" / FOLDER).exists()
    batches(command(tmp_path / "cut"), cut_at=3)
    assert len(list((tmp_path / "cut" / FOLDER).iterdir())) == 1
    assert batches(command(tmp_path / "cut")) == 1
    (cut, cut_samples), (whole, whole_samples) = (read_run(tmp_path / name) for name in ("cut", "whole"))
    assert cut_samples == whole_samples
    assert cut["config"]["sae"]["steered_positions"] == whole["config"]["sae"]["steered_positions"] > 0
    assert not (tmp_path / "cut" / FOLDER).exists()


def test_completions_of_other_settings_are_not_taken(
    command: Callable[..., list[str]], batches: Callable[..., int], tmp_path: Path
) -> None:
    batches(command(tmp_path), cut_at=3)
    batches(command(tmp_path, strength=1.0), cut_at=3)
    assert batches(command(tmp_path, gen_kwargs=SAMPLED.replace("0.8", "0.9"))) == 3


def test_a_line_that_was_cut_off_is_left_out_and_harms_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        with kept_in(str(tmp_path)):
            unfinished_of({"a": 1}).add([("one", 1), ("two", 2)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_text(file.read_text()[:-4])
    with kept_in(str(tmp_path)):
        kept = unfinished_of({"a": 1})
        assert kept.read() == {"one": 1}
        kept.add([("two", 3)])  # the same process writes to the same file
        monkeypatch.setattr(os, "getpid", lambda: 1)
        kept.add([("three", 3)])
        assert kept.read() == {"one": 1, "two": 3, "three": 3}
        assert unfinished_of({"a": 2}).read() == {}
    assert not (tmp_path / FOLDER).exists() and unfinished_of({"a": 1}) is None
