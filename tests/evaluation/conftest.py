"""SAEs and problems for the evaluation tests."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import save_random_checkpoint

from lm_eval_sae.judge.client import get_judge

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.pop("PROCESSOR", None)  # no judge but those that tests set up

D_IN, D_SAE, LAYER = 256, 64, 1  # of the SAEs made here; D_IN is tiny_llama's width


@pytest.fixture(autouse=True)
def forget_the_judge() -> None:
    """A process has one judge; each test has its own."""
    get_judge.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def one_look_at_the_machine() -> Iterator[None]:
    """What lm-eval writes of the machine into each results file takes it seconds: here it is found out once."""
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", functools.cache(collect_env.get_pretty_env_info))
        yield


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading one fails the test."""
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._create_model", lambda *_, **__: pytest.fail("loaded"))


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A random Qwen2 of the sizes of `tiny_llama` with 3 layers, its attention's biases included."""
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    sizes = {"hidden_size": D_IN, "intermediate_size": 512, "num_hidden_layers": 3, "num_key_value_heads": 2}
    save_random_checkpoint("qwen2", {**sizes, "initializer_range": 0.05}, folder, tokenizer=tiny_llama)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A random Qwen3 with `head_dim` of its own and tied embeddings."""
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    sizes = {
        "hidden_size": D_IN, "intermediate_size": 512, "num_hidden_layers": 3, "num_key_value_heads": 2,
        "head_dim": 32, "tie_word_embeddings": True,
    }  # fmt: skip
    save_random_checkpoint("qwen3", {**sizes, "initializer_range": 0.05}, folder, tokenizer=tiny_llama)
    return folder


@pytest.fixture(scope="session")
def make_sae(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves a random SAE through SAELens: decoder rows of many norms, about half of f(x) above 0."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    classes = {
        "standard": (StandardSAE, StandardSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "topk": (TopKSAE, TopKSAEConfig),
    }

    def make(
        architecture: str = "standard",
        *,
        d_in: int = D_IN,
        hook_name: str = f"blocks.{LAYER}.hook_resid_post",
        **config: object,
    ) -> Path:
        sae_class, config_class = classes[architecture]
        metadata = SAEMetadata(hook_name=hook_name, model_name="tiny-llama")
        sae = sae_class(config_class(d_in=d_in, d_sae=D_SAE, metadata=metadata, **config))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            sae.W_dec.copy_(torch.randn(D_SAE, d_in, generator=generator))
            sae.W_dec.mul_(torch.linspace(0.2, 3, D_SAE)[:, None] / d_in**0.5)
            sae.W_enc.copy_(torch.randn(d_in, D_SAE, generator=generator) / d_in**0.5)
            sae.b_enc.copy_(torch.randn(D_SAE, generator=generator) * 0.1)
            sae.b_dec.copy_(torch.randn(d_in, generator=generator) * 0.1)
            if architecture == "jumprelu":
                sae.threshold.copy_(torch.rand(D_SAE, generator=generator) * 0.3)
        folder = tmp_path_factory.mktemp(architecture)
        sae.save_model(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short problems in a .jsonl file."""
    file = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    rows = [{"problem": f"What is {a} + {a * a}?", "answer": str(a + a * a)} for a in range(2, 8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def benchmark_facts(fixtures_dir: Path) -> dict[str, Any]:
    """What the benchmarks prescribe: prompts, stop strings, sampling, repeats."""
    return json.loads((fixtures_dir / "prompts.json").read_text(encoding="utf-8"))["benchmarks"]


@pytest.fixture(scope="session")
def make_steerings(make_sae: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes interventions (`engines.interventions`) by SAEs at layers 1 and 2 of the tiny models."""
    from engines import interventions

    saes = make_sae("jumprelu"), make_sae("standard", hook_name="blocks.2.hook_resid_post")
    return lambda strength: interventions(*saes, tmp_path_factory.mktemp("interventions"), strength=strength)


@pytest.fixture(scope="session")
def steerings(make_steerings: Callable[..., Any]) -> dict[str, Any]:
    """Interventions whose effect on log-likelihoods is large."""
    return make_steerings(2.0)


@pytest.fixture(scope="session")
def mild_steerings(make_steerings: Callable[..., Any]) -> dict[str, Any]:
    """Interventions that leave texts varied."""
    return make_steerings(0.5)


@pytest.fixture(scope="session")
def texts_of_transformers(mild_steerings: dict[str, Any]) -> Callable[[Path], dict[str, list[str]]]:
    """A function: what transformers generates for `engines.MIXED_PROMPTS` under each of `mild_steerings`."""
    from engines import MIXED_PROMPTS, alone, start_hf

    return functools.cache(lambda model: alone(start_hf(model), MIXED_PROMPTS, mild_steerings))
