"""The compiled vLLM engine: the same as transformers, whatever was steered when its graphs were compiled."""

from collections.abc import Callable
from pathlib import Path

import pytest
from engines import PLACES, assert_agree, assert_all_differ, assert_mixed_batch_equals, start_hf, start_vllm

from lm_eval_sae.steering.arguments import Steering

pytestmark = pytest.mark.needs_vllm


def compiled_graphs(cache: Path) -> set[str]:
    """The keys under which vLLM keeps what it compiled."""
    return {path.name for path in (cache / "torch_compile_cache" / "torch_aot_compile").iterdir()}


def test_one_compile_cache_serves_every_intervention(
    tiny_qwen2: Path,
    make_sae: Callable[..., Path],
    steerings: dict[str, Steering | None],
    mild_steerings: dict[str, Steering | None],
    texts_of_transformers: Callable[[Path], dict[str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "vllm"
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))
    reference = start_hf(tiny_qwen2)

    cold = start_vllm(tiny_qwen2, eager=False, layers=PLACES)
    assert_mixed_batch_equals(cold, texts_of_transformers(tiny_qwen2), mild_steerings)
    assert_all_differ([assert_agree(cold, reference, steering, long=False) for steering in steerings.values()])
    cold.close()
    graphs = compiled_graphs(cache)
    assert graphs

    other = {"sae_path": str(make_sae("jumprelu")), "sae_feature_idx": 41, "sae_strength": 2.0}
    warm = start_vllm(tiny_qwen2, eager=False, layers=PLACES, **other, sae_max_activation=6.0)
    assert compiled_graphs(cache) == graphs
    assert [(f.feature_idx, f.value) for f in warm.steering.features] == [(41, 12.0)]
    assert_mixed_batch_equals(warm, texts_of_transformers(tiny_qwen2), mild_steerings)
    warm.close()
