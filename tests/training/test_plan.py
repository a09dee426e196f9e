"""--plan: its figures are what real models, SAEs, training steps and checkpoints take, counted on small ones."""

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from random_checkpoints import save_random_checkpoint
from sae_lens import StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE
from sae_training import config, plan, plan_memory
from sae_training.activations import ActivationSource, ActivationStream
from sae_training.held_out import HeldOutEvaluator
from sae_training.plan_memory import ModelSize
from sae_training.plan_work import ModelWork, sae_flops
from sae_training.trainer import Trainer
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from train_sae import main
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from transformer_lens_r1 import load_model, residual_stream
from transformer_lens_r1.shared.ranks import Ranks


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are alive at once; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.references: dict[int, Any] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if not torch.is_tensor(leaf):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key in self.live or key in given:
                continue
            self.live[key] = storage.nbytes()
            self.references[key] = weakref.ref(storage, lambda _, key=key: self.live.pop(key))
            self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """An untrained Qwen2 of unequal widths, with the small Llama's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-qwen")
    sizes = {
        "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }  # fmt: skip
    save_random_checkpoint("qwen2", sizes, folder, tokenizer=tiny_llama)
    return folder


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """An untrained Qwen3 whose heads together are wider than the residual stream, as in Qwen3-4B."""
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    sizes = {
        "hidden_size": 96, "intermediate_size": 368, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 40, "tie_word_embeddings": True,
    }  # fmt: skip
    save_random_checkpoint("qwen3", sizes, folder, tokenizer=tiny_llama)
    return folder


@pytest.fixture(params=["tiny_llama", "tiny_qwen", "tiny_qwen3"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def make_trainer() -> Callable[..., Any]:
    """A trainer of train_sae.py, after its first step."""

    def call(
        d_in: int,
        d_sae: int,
        batch: int,
        *,
        apply_b_dec_to_input: bool = False,
        autocast: bool = False,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> Any:
        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=apply_b_dec_to_input)
        )

        def batches() -> Iterator[torch.Tensor]:
            while True:
                yield torch.randn(batch, d_in)

        trainer = Trainer(
            SAETrainerConfig(10 * batch, batch, lr_end=1e-5, autocast=autocast), sae, batches(),
            between_steps=lambda _: None, save_snapshot=lambda _: None, ranks=ranks,
        )  # fmt: skip
        trainer.activation_scaler.scaling_factor = 2.0
        trainer.step(torch.randn(batch, d_in))
        return trainer

    return call


def size_in_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        ),
        Qwen2Config(
            vocab_size=50, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2,
        ),
        Qwen3Config(
            vocab_size=50, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=24,
        ),
    ],
)  # fmt: skip
def test_the_models_parameters_are_counted_exactly(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    counted = ModelWork.of_config(config, context=8).parameters(config.num_hidden_layers)
    assert counted == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loaded_layers_weights_are_counted_exactly(checkpoint: Path, dtype: str) -> None:
    n_layers = 2
    model = load_model(checkpoint, n_layers=n_layers, dtype=dtype)
    config = AutoConfig.from_pretrained(checkpoint)
    counted = ModelWork.of_config(config, context=8).parameters(n_layers)
    assert plan_memory.model_bytes(counted, ModelSize.of_config(config), dtype) == size_in_bytes(
        model.original_model.parameters()
    )


def test_the_saes_parameters_gradients_and_adams_moments_are_counted_exactly(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(24, 200, 16)
    counted = plan_memory.sae_parameters(24, 200)
    assert counted == sum(parameter.numel() for parameter in trainer.sae.parameters())
    moments = [state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert size_in_bytes(moments) == 2 * 4 * counted
    gradients: list[torch.Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(parameter.grad for parameter in trainer.sae.parameters())
    )
    trainer.step(torch.randn(16, 24))
    assert size_in_bytes(gradients) == 4 * counted


@pytest.mark.parametrize(("rows", "context", "layers"), [(4, 64, 3), (2, 128, 1)])
def test_the_models_work_is_that_of_a_forward_pass(checkpoint: Path, rows: int, context: int, layers: int) -> None:
    model = load_model(checkpoint, n_layers=4)
    work = ModelWork.of_config(AutoConfig.from_pretrained(checkpoint), context=context)
    tokens = torch.randint(0, 300, (rows, context))
    # The fused attention of a CPU is not counted: the same products, one by one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        residual_stream(model, tokens, f"blocks.{layers - 1}.hook_resid_post")
    assert rows * work.flops(layers) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    assert rows * work.flops(4, unembed=True) == counter.get_total_flops()


@pytest.mark.parametrize("apply_b_dec", [False, True])
def test_the_saes_work_is_4_operations_forward_and_6_backward_for_a_weight_and_token(apply_b_dec: bool) -> None:
    config = {"architecture": "standard", "d_in": 24, "d_sae": 200, "apply_b_dec_to_input": apply_b_dec}
    # The gradient of the input, 2 more, is needed only for a decoder bias that is subtracted from it.
    assert sae_flops(config, 16) == ((10 + 2 * apply_b_dec) * 16 * 24 * 200, 4 * 16 * 24 * 200)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "context"), [(4, 128), (64, 8)])
def test_a_forward_pass_takes_the_memory_that_the_plan_says(
    checkpoint: Path, dtype: str, rows: int, context: int
) -> None:
    model = load_model(checkpoint, n_layers=4, dtype=dtype)
    size = ModelSize.of_config(AutoConfig.from_pretrained(checkpoint))
    tokens = torch.randint(0, 300, (rows, context))
    with LiveMemory() as memory:
        residual_stream(model, tokens, "blocks.2.hook_resid_post")
    expected = plan_memory.forward_peak_bytes(size, rows=rows, context=context, dtype=dtype)
    assert expected == pytest.approx(memory.peak, rel=0.005)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("d_in", "d_sae", "batch"), [(64, 512, 16), (32, 512, 128)])
def test_a_training_step_takes_the_memory_that_the_plan_says(
    make_trainer: Callable[..., Any], d_in: int, d_sae: int, batch: int, autocast: bool
) -> None:
    trainer = make_trainer(d_in, d_sae, batch, autocast=autocast)
    x = torch.randn(batch, d_in)
    with LiveMemory() as memory:
        trainer.step(x)
    expected = plan_memory.step_peak_bytes(d_in, d_sae, batch, autocast=autocast)
    assert expected == pytest.approx(memory.peak, rel=0.005)


@pytest.mark.parametrize(("d_in", "d_sae", "batch"), [(64, 512, 16), (32, 512, 128)])
def test_a_step_of_one_of_several_ranks_takes_no_more_memory_than_the_plan_says(
    make_trainer: Callable[..., Any], d_in: int, d_sae: int, batch: int
) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        trainer = make_trainer(d_in, d_sae, batch, ranks=Ranks(0, 2))
        trainer.step(x := torch.randn(batch, d_in))  # DDP finds the order of its gradients in the first step
        with LiveMemory() as memory:
            trainer.step(x)
    finally:
        torch.distributed.destroy_process_group()
    # Beside the averaged gradients, which stay: the plan counts them apart.
    bound = plan_memory.step_peak_bytes(d_in, d_sae, batch, autocast=False)
    assert 0.75 * bound < memory.peak <= 1.005 * bound


@pytest.mark.parametrize("loss", [False, True])
def test_measuring_held_out_rows_takes_no_more_memory_than_the_plan_says(
    make_trainer: Callable[..., Any], tiny_llama: Path, loss: bool
) -> None:
    rows = datasets.Dataset.from_dict({"tokens": [[(5 * i + j) % 300 for j in range(64)] for i in range(16)]})
    source = ActivationSource(load_model(tiny_llama), "blocks.2.hook_resid_post")
    sae = make_trainer(256, 4096, 8).sae
    with LiveMemory() as memory:
        HeldOutEvaluator(source, rows, batch_size=8, cross_entropy=loss).quality(sae)
    bound = sum(
        plan_memory.evaluation_peak_bytes(
            ModelSize.of_config(AutoConfig.from_pretrained(tiny_llama)),
            d_in=256, d_sae=4096, rows=8, context=64, dtype="float32", loss=loss,
        )
    )  # fmt: skip
    assert 0.5 * bound < memory.peak <= bound


def test_the_buffer_a_checkpoint_and_a_snapshot_are_as_large_as_the_plan_says(
    make_trainer: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_llama, n_layers=4, dtype="bfloat16")
    rows = datasets.Dataset.from_dict({"tokens": [[(5 * i + j) % 300 for j in range(32)] for i in range(60)]})
    stream = ActivationStream(
        ActivationSource(model, "blocks.2.hook_resid_post"), rows, rows_per_pass=8, batch_size=64,
        buffer_size=300, mix_fraction=0.5, seed=0,
    )  # fmt: skip
    for _ in range(10):
        next(stream)
    tokens = plan_memory.buffer_tokens(buffer=300, batch=64, pass_tokens=8 * 32, mix_fraction=0.5)
    assert size_in_bytes([stream.buffer]) == 2 * 256 * tokens

    # as the run's checkpoints are written: weights, trainer state, and the stream with what is left in its buffer
    trainer = make_trainer(256, 4096, 8)
    trainer.sae.save_model(tmp_path)
    trainer.save_trainer_state(tmp_path)
    state = stream.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "stream.safetensors")
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    left = size_in_bytes([state["activations"]])
    assert left <= 2 * 256 * tokens
    assert plan_memory.checkpoint_bytes(256, 4096, buffer=left) == pytest.approx(written, rel=0.002)
    trainer.sae.save_inference_model(tmp_path / "snapshot")
    save_file({"sparsity": trainer.log_feature_sparsity}, tmp_path / "snapshot" / "sparsity.safetensors")
    written = sum(file.stat().st_size for file in (tmp_path / "snapshot").iterdir())
    assert plan_memory.snapshot_bytes(256, 4096) == pytest.approx(written, rel=0.002)


@pytest.fixture
def papers_plan(repository: Path) -> Callable[..., Any]:
    """The plan of the paper's run, with overrides."""

    def call(*overrides: str, gpu: str = "h100", n_gpus: int = 1, utilisation: float = 0.4) -> Any:
        values = config.read_config(repository / "training/configs/r1-distill-llama-8b.yaml", overrides)
        return plan.make_plan(
            config.build_config(values), AutoConfig.for_model(**LLAMA_8B), extra=config.extra_settings(values),
            gpu=plan.GPUS[gpu], n_gpus=n_gpus, utilisation=utilisation,
        )  # fmt: skip

    return call


# The config.json of DeepSeek-R1-Distill-Llama-8B, as far as sizes go.
LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False, "max_position_embeddings": 131072,
}  # fmt: skip


def test_the_papers_run_is_planned(papers_plan: Callable[..., Any]) -> None:
    plan = papers_plan()
    assert plan.model_parameters == 8_030_261_248  # what the model's card says: 8.03 B
    assert (plan.tokens, plan.steps, plan.norm_tokens) == (819_200_000, 200_000, 4_096_000)
    assert plan.sae_parameters == 2 * 4096 * 65536 + 65536 + 4096
    assert (plan.loaded_layers, plan.used_layers, plan.all_layers) == (32, 20, 32)
    # every 600 steps and at the end, 10 batches of 8 rows
    assert (plan.evaluations, plan.evaluation_tokens) == (334, 334 * 80 * 1024)
    assert plan.work["SAE, training"] == 10 * 819_200_000 * 4096 * 65536
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert plan.work["model, training"] == (819_200_000 + 4_096_000) * 20 * (2 * layer + 4 * 4096 * 1024)
    assert plan.fits and plan.peak.keys() == {"cuda"}
    assert plan.memory["activation buffer"] == 2 * 4096 * 1024 * (256 + 8)  # rows in bfloat16, and one pass more
    stays = sum(plan.memory[part] for part in ("model", "SAE", "Adam's moments", "activation buffer"))
    turns = (
        plan.memory["forward pass, at its peak"],
        plan.memory["gradients"] + plan.memory["SAE step, beside its gradients"],
        plan.memory["an evaluation, at most"],
    )
    assert plan.peak["cuda"] == stays + max(turns)
    assert plan.hours["SAE, training"] == pytest.approx(plan.work["SAE, training"] / (494.7e12 * 0.4) / 3600)
    assert plan.hours["model, training"] == pytest.approx(plan.work["model, training"] / (989.4e12 * 0.4) / 3600)
    assert plan.total_hours == pytest.approx(sum(plan.hours.values()))


def test_the_plan_follows_the_config(papers_plan: Callable[..., Any]) -> None:
    plain, half = papers_plan(), papers_plan("training_tokens=409_600_000")
    assert half.hours["SAE, training"] == pytest.approx(plain.hours["SAE, training"] / 2)
    cast = papers_plan("autocast=true")
    assert cast.total_hours == pytest.approx(plain.alternatives["autocast: true"]) and not cast.alternatives
    assert papers_plan(utilisation=0.8).total_hours == pytest.approx(plain.total_hours / 2)
    assert not papers_plan(gpu="rtx-4090").fits
    assert papers_plan("sae.d_sae=524288").fits is False
    assert papers_plan("sae.normalize_activations=none").norm_tokens == 0
    # without the model's loss, no evaluation goes beyond the hook, and the layers behind it are not loaded
    short = papers_plan("evaluate_cross_entropy=false")
    assert short.work["model, evaluations"] < 0.6 * plain.work["model, evaluations"]
    assert short.memory["model"] < 0.75 * plain.memory["model"] and short.loaded_layers == 21
    assert papers_plan("checkpoint_path=null").disk == plain.memory["SAE"]
    assert papers_plan("checkpoint_every_minutes=null").checkpoints == 0
    exact = papers_plan("float32_matmul_precision=highest")
    assert plain.total_hours == pytest.approx(exact.alternatives["float32_matmul_precision: high"])
    assert exact.hours["SAE, training"] == pytest.approx(plain.hours["SAE, training"] * 494.7 / 66.9)


def test_ranks_share_the_work_but_not_the_weights(papers_plan: Callable[..., Any]) -> None:
    one, four = papers_plan(), papers_plan(n_gpus=4)
    assert (four.steps, four.tokens, four.work) == (one.steps, one.tokens, one.work)
    assert four.hours["model, training"] == pytest.approx(one.hours["model, training"] / 4)
    gradients = 4 * four.sae_parameters
    assert four.reduced_bytes == 1.5 * gradients  # 3 of 4 parts, once to add up and once to hand out
    assert four.communication_hours == pytest.approx(200_000 * 1.5 * gradients / 450e9 / 3600)
    assert four.communication_hours / 2 <= four.hours["waiting for gradients"] < four.communication_hours
    assert one.total_hours / 4 < four.total_hours < one.total_hours / 2
    assert "waiting for gradients" not in one.hours
    # A second copy of the gradients, and a fourth of the features.
    assert four.memory["SAE"] == one.memory["SAE"] and four.peak["cuda"] == one.peak["cuda"] + gradients
    assert four.memory["SAE step, beside its gradients"] < one.memory["SAE step, beside its gradients"]
    assert papers_plan(n_gpus=16).total_hours > papers_plan(n_gpus=8).total_hours, "slower links between nodes"


def test_an_sae_of_262144_features_fits_80_gb_with_whole_optimiser_states(papers_plan: Callable[..., Any]) -> None:
    settings = ("sae.d_sae=262144", "eval_batch_size_prompts=4")
    assert [papers_plan(*settings, n_gpus=n).fits for n in (2, 4, 8)] == [False, True, True]
    assert papers_plan(*settings, "evaluate_cross_entropy=false", n_gpus=2).fits


def test_two_gpus_share_the_memory_and_the_time(papers_plan: Callable[..., Any]) -> None:
    one = papers_plan("autocast=true")
    two = papers_plan("autocast=true", "device=cuda:1", "llm_device=cuda:0", "prefetch_llm_batches=true")
    assert two.peak.keys() == {"cuda:0", "cuda:1"}
    assert max(two.peak.values()) < one.peak["cuda"] < sum(two.peak.values())
    longest = max(one.hours["model, training"], one.hours["SAE, training"])
    assert two.overlap and two.total_hours == pytest.approx(
        longest + one.hours["model, evaluations"] + one.hours["SAE, evaluations"]
    )


def test_the_script_plans_without_weights(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "model.safetensors").touch()  # empty: reading it would fail
    main(
        [str(repository / "training/configs/r1-distill-llama-8b-flat.yaml"), "--plan", "--gpu", "a100"]
        + ["--set", f"model_name={tmp_path}", "--utilisation", "0.5"]
    )
    printed = capsys.readouterr().out
    assert "for A100 SXM, at 0.5 of its peak rate" in printed
    assert "200,000 steps of 4,096" in printed and "fits in 80 GB" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
