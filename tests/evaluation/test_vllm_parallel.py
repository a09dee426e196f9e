"""Steering on every rank: tensor and data parallel engines (vLLM's CPU build, real Ray)."""

from pathlib import Path

import pytest
from engines import PLACES, PROMPTS, assert_agree, assert_all_differ, generations, start_hf, start_vllm

from lm_eval_sae.engines.kept_completions import FOLDER, kept_in
from lm_eval_sae.engines.vllm_engine import split_cores
from lm_eval_sae.steering.arguments import Steering


@pytest.mark.needs_vllm
def test_tensor_parallel_ranks_all_steer(tiny_qwen2: Path, steerings: dict[str, Steering | None]) -> None:
    reference = start_hf(tiny_qwen2)
    model = start_vllm(tiny_qwen2, layers=PLACES, tensor_parallel_size=2)
    assert_all_differ([assert_agree(model, reference, steerings[name]) for name in ("several", "nothing", "published")])
    workers = model.model.collective_rpc("steered_positions")
    model.close()
    assert len(workers) == 2 and workers[0] == workers[1] and workers[0]["1"] > 0


@pytest.mark.needs_vllm
def test_the_pipeline_rank_that_owns_a_layer_steers_it(tiny_llama: Path, steerings: dict[str, Steering | None]) -> None:
    reference = start_hf(tiny_llama)
    # Compiled: vLLM's CPU worker skips the warm-up of an eager engine, and without it a pipeline fails, steered or not.
    model = start_vllm(tiny_llama, eager=False, layers=PLACES, pipeline_parallel_size=2)
    assert_all_differ([assert_agree(model, reference, steerings[name]) for name in ("several", "nothing", "published")])
    assert [list(counts) for counts in model.model.collective_rpc("steered_positions")] == [["1"], ["2"]]
    model.close()


@pytest.mark.needs_vllm
def test_data_parallel_replicas_all_steer(
    tiny_llama: Path, steerings: dict[str, Steering | None], tmp_path: Path
) -> None:
    hf = start_hf(tiny_llama)
    model = start_vllm(tiny_llama, layers=PLACES, data_parallel_size=2)
    assert_all_differ([assert_agree(model, hf, steerings[name]) for name in ("several", "nothing", "published")])
    counts = model.engine._ray.get([actor.steered_positions.remote() for actor in model.engine.actors])
    assert model.steered_positions == sum(count["1"] for count in counts) and all(count["1"] > 0 for count in counts)

    texts = model.generate_until(generations(PROMPTS), disable_tqdm=True)
    with pytest.raises(KeyboardInterrupt), kept_in(str(tmp_path)):
        assert model.generate_until(generations(PROMPTS), disable_tqdm=True) == texts
        files = list((tmp_path / FOLDER).iterdir())
        assert [len(file.read_text().splitlines()) for file in files] == [2, 2], "each replica keeps its own"
        files[0].unlink()
        before = model.engine.steered_positions()["1"]
        assert model.generate_until(generations(PROMPTS), disable_tqdm=True) == texts
        assert 0 < model.engine.steered_positions()["1"] - before <= sum(map(len, model.tok_encode(PROMPTS))) + 2 * 11
        raise KeyboardInterrupt
    model.close()


@pytest.mark.parametrize(
    ("cores", "replicas", "ranks", "expected"),
    [
        (4, 2, 1, ["0,1", "2,3"]),
        (4, 1, 2, ["0,1|2,3"]),
        (8, 2, 2, ["0,1|2,3", "4,5|6,7"]),
        (2, 2, 2, ["0|1", "0|1"]),
    ],
)
def test_cores_are_dealt_out(
    cores: int, replicas: int, ranks: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert split_cores(replicas, ranks) == expected
