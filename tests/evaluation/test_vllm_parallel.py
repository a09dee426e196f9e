"""Steering on every rank: tensor, pipeline and data parallel engines (vLLM's CPU build, real Ray)."""

from collections.abc import Callable
from pathlib import Path

import pytest
from engines import (
    PLACES,
    PROMPTS,
    assert_mixed_batch_equals,
    generations,
    start_hf,
    start_vllm,
    steered_positions,
)

from lm_eval_sae.engines.kept_completions import FOLDER, kept_in
from lm_eval_sae.engines.vllm_engine import split_cores
from lm_eval_sae.steering.arguments import Steering
from lm_eval_sae.steering.requests import intervention_key, request_arguments

TextsOf = Callable[[Path], dict[str, list[str]]]
Steerings = dict[str, Steering | None]


def key_of(steering: Steering | None) -> str:
    return intervention_key(request_arguments(steering))


@pytest.mark.needs_vllm
@pytest.mark.parametrize("kind", ["tiny_qwen2", "tiny_qwen3"])
def test_tensor_parallel_ranks_all_steer(
    kind: str, request: pytest.FixtureRequest, mild_steerings: Steerings, texts_of_transformers: TextsOf
) -> None:
    folder = request.getfixturevalue(kind)
    model = start_vllm(folder, layers=PLACES, tensor_parallel_size=2)
    assert_mixed_batch_equals(model, texts_of_transformers(folder), mild_steerings)
    keys = [key_of(steering) for steering in mild_steerings.values()]
    workers = model.model.collective_rpc("steered_positions", args=(keys,))
    question = [{"role": "user", "content": "Why?"}]
    assert model.apply_chat_template(question) == start_hf(folder).apply_chat_template(question)  # Qwen3 is to think
    model.close()
    assert len(workers) == 2 and workers[0] == workers[1] and workers[0].keys() == PLACES.keys()


@pytest.mark.needs_vllm
@pytest.mark.parametrize("layers", [PLACES, {1: 2}], ids=["a layer on each rank", "none on the second rank"])
def test_the_pipeline_rank_that_owns_a_layer_steers_it(
    layers: dict[int, int], tiny_llama: Path, mild_steerings: Steerings, texts_of_transformers: TextsOf
) -> None:
    # Compiled: vLLM's CPU worker skips the warm-up of an eager engine, and without it a pipeline fails, steered or not.
    model = start_vllm(tiny_llama, eager=False, layers=layers, pipeline_parallel_size=2)
    chosen = {name: of for name, of in mild_steerings.items() if of is None or of.layers().keys() <= layers.keys()}
    expected = texts_of_transformers(tiny_llama)
    assert_mixed_batch_equals(model, {name: expected[name] for name in chosen}, chosen)
    workers = model.model.collective_rpc("steered_positions", args=([key_of(mild_steerings["set"])],))
    model.close()
    assert [list(counts) for counts in workers] == [[1], [layer for layer in layers if layer == 2]]
    assert len(chosen) >= 5


@pytest.mark.needs_vllm
def test_data_parallel_replicas_all_steer(
    tiny_llama: Path, mild_steerings: Steerings, texts_of_transformers: TextsOf, tmp_path: Path
) -> None:
    model = start_vllm(tiny_llama, layers=PLACES, data_parallel_size=2)
    # An odd number of interventions: each goes to both replicas.
    seven = {name: steering for name, steering in mild_steerings.items() if name != "set another"}
    expected = {name: texts for name, texts in texts_of_transformers(tiny_llama).items() if name in seven}
    assert_mixed_batch_equals(model, expected, seven)
    key = key_of(mild_steerings["set"])
    counts = model.engine._ray.get([actor.steered_positions.remote([key]) for actor in model.engine.actors])
    assert all(count[key] > 0 for count in counts)

    model.set_intervention(mild_steerings["set"])
    texts = model.generate_until(generations(PROMPTS), disable_tqdm=True)
    with pytest.raises(KeyboardInterrupt), kept_in(str(tmp_path)):
        assert model.generate_until(generations(PROMPTS), disable_tqdm=True) == texts
        files = list((tmp_path / FOLDER).iterdir())
        assert [len(file.read_text().splitlines()) for file in files] == [2, 2], "each replica keeps its own"
        files[0].unlink()
        before = steered_positions(model, [key])[key]
        assert model.generate_until(generations(PROMPTS), disable_tqdm=True) == texts
        new = steered_positions(model, [key])[key] - before
        assert 0 < new <= sum(map(len, model.tok_encode(PROMPTS))) + 2 * 11
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
