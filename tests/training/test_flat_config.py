"""The flat layout of SAELens 5.5.2: the paper's config is the run that ours is, and what cannot be had is refused."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, StandardTrainingSAEConfig
from sae_training import config, flat_config, sae_lens_keys

from transformer_lens_r1.shared.errors import UserError

FLAT = "training/configs/r1-distill-llama-8b-flat.yaml"
OURS = "training/configs/r1-distill-llama-8b.yaml"

Build = Callable[..., LanguageModelSAERunnerConfig[Any]]

# The paper's run in SAELens 6's objects: every value that is not the default there.
SAE = {
    "d_in": 4096, "d_sae": 65_536, "device": "cuda", "apply_b_dec_to_input": False, "decoder_init_norm": 0.1,
    "normalize_activations": "expected_average_only_in", "l1_coefficient": 5.0, "l1_warm_up_steps": 10_000,
}  # fmt: skip
LOGGER = {
    "wandb_project": "sae-lmsys-openthoughts", "run_name": "r1-distill-llama-8b-ctx-1024-l1-5",
    "wandb_log_frequency": 30, "eval_every_n_wandb_logs": 20,
}  # fmt: skip
RUN = {
    "model_name": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "hook_name": "blocks.19.hook_resid_post",
    "dataset_path": "andreuka18/DeepSeek-R1-Distill-Llama-8B-lmsys-openthoughts-tokenized", "streaming": False,
    "dataset_trust_remote_code": False, "context_size": 1024, "n_batches_in_buffer": 256, "prepend_bos": False,
    "training_tokens": 819_200_000, "store_batch_size_prompts": 8, "exclude_special_tokens": [128000, 128001],
    "device": "cuda", "llm_device": "cuda", "act_store_device": "cuda", "train_batch_size_tokens": 4096, "lr": 5e-5,
    "lr_decay_steps": 40_000, "dead_feature_window": 1000, "feature_sampling_window": 1000,
    "dead_feature_threshold": 1e-4, "n_checkpoints": 5, "verbose": False,
    "model_from_pretrained_kwargs": {"center_writing_weights": False, "dtype": "bfloat16"},
    "output_path": "sae_runs/r1-distill-llama-8b-ctx-1024-l1-5",
}  # fmt: skip
# Every key of ours.
EXTRA = {
    "checkpoint_every_minutes": 15.0, "checkpoints_kept": 2, "evaluate_cross_entropy": True,
    "float32_matmul_precision": "high", "rope_original_context": None, "decoder_init": "saelens",
    "as_published": False,
}  # fmt: skip
# Every field of SAELens 5.5.2's LanguageModelSAERunnerConfig, with its default there (from its source).
DEFAULTS_5 = {
    "model_name": "gelu-2l", "model_class_name": "HookedTransformer", "hook_name": "blocks.0.hook_mlp_out",
    "hook_eval": "NOT_IN_USE", "hook_layer": 0, "hook_head_index": None, "dataset_path": "",
    "dataset_trust_remote_code": True, "streaming": True, "is_dataset_tokenized": True, "context_size": 128,
    "use_cached_activations": False, "cached_activations_path": None, "architecture": "standard", "d_in": 512,
    "d_sae": None, "b_dec_init_method": "geometric_median", "expansion_factor": None, "activation_fn": None,
    "activation_fn_kwargs": None, "normalize_sae_decoder": True, "noise_scale": 0.0, "from_pretrained_path": None,
    "apply_b_dec_to_input": True, "decoder_orthogonal_init": False, "decoder_heuristic_init": False,
    "init_encoder_as_decoder_transpose": False, "n_batches_in_buffer": 20, "training_tokens": 2_000_000,
    "finetuning_tokens": 0, "store_batch_size_prompts": 32, "normalize_activations": "none",
    "seqpos_slice": (None,), "device": "cpu", "act_store_device": "with_model", "seed": 42, "dtype": "float32",
    "prepend_bos": True, "jumprelu_init_threshold": 0.001, "jumprelu_bandwidth": 0.001, "autocast": False,
    "autocast_lm": False, "compile_llm": False, "llm_compilation_mode": None, "compile_sae": False,
    "sae_compilation_mode": None, "train_batch_size_tokens": 4096, "adam_beta1": 0.0, "adam_beta2": 0.999,
    "mse_loss_normalization": None, "l1_coefficient": 1e-3, "lp_norm": 1.0,
    "scale_sparsity_penalty_by_decoder_norm": False, "l1_warm_up_steps": 0, "lr": 3e-4,
    "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_end": None, "lr_decay_steps": 0,
    "n_restart_cycles": 1, "finetuning_method": None, "use_ghost_grads": False, "feature_sampling_window": 2000,
    "dead_feature_window": 1000, "dead_feature_threshold": 1e-8, "n_eval_batches": 10,
    "eval_batch_size_prompts": None, "log_to_wandb": True, "log_activations_store_to_wandb": False,
    "log_optimizer_state_to_wandb": False, "wandb_project": "mats_sae_training_language_model", "wandb_id": None,
    "run_name": None, "wandb_entity": None, "wandb_log_frequency": 10, "eval_every_n_wandb_logs": 100,
    "resume": False, "n_checkpoints": 0, "checkpoint_path": "checkpoints", "verbose": True, "model_kwargs": {},
    "model_from_pretrained_kwargs": None, "sae_lens_version": "5.5.2", "sae_lens_training_version": "5.5.2",
    "exclude_special_tokens": False,
}  # fmt: skip
# What a flat config must say because this project, or SAELens 6, cannot do what leaving it out meant.
MINIMAL = {
    "model_name": "user/model",
    "dataset_path": "user/tokens",
    "hook_name": "blocks.3.hook_resid_post",
    "d_in": 512,
    "context_size": 128,
    "training_tokens": 2_000_000,
    "b_dec_init_method": "zeros",
    "normalize_sae_decoder": False,
    "scale_sparsity_penalty_by_decoder_norm": True,
    "init_encoder_as_decoder_transpose": True,
}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """The configuration object of a file's or a dictionary's keys, with overrides."""

    def call(values: Path | dict[str, Any], *overrides: str) -> LanguageModelSAERunnerConfig[Any]:
        path = values if isinstance(values, Path) else tmp_path / "config.yaml"
        if isinstance(values, dict):
            path.write_text(yaml.safe_dump(values))
        return config.build_config(config.read_config(path, overrides))

    return call


def names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


def test_the_papers_flat_config_and_ours_are_the_same_run_in_every_field(build: Build, repository: Path) -> None:
    paper = LanguageModelSAERunnerConfig(sae=StandardTrainingSAEConfig(**SAE), logger=LoggingConfig(**LOGGER), **RUN)
    paper.checkpoint_path = f"{paper.output_path}.checkpoints"  # SAELens adds a random name
    flat, ours = build(repository / FLAT), build(repository / OURS)
    paper.sae.metadata = flat.sae.metadata
    assert flat == ours == paper and flat.total_training_steps == 200_000
    extra = [config.extra_settings(config.read_config(repository / path)) for path in (FLAT, OURS)]
    assert extra[0] == extra[1] == EXTRA


def test_every_field_of_saelens_5_is_known(build: Build) -> None:
    assert set(DEFAULTS_5) <= {*sae_lens_keys.TOP, *flat_config.KEYS}
    # what SAELens 5 wrote into cfg.json is this object and one more number, and is a config again
    saved = {**DEFAULTS_5, **MINIMAL, "hook_layer": 3, "expansion_factor": 4, "d_sae": 2048, "streaming": False}
    saved |= {"activation_fn": "relu", "activation_fn_kwargs": {}, "tokens_per_buffer": 1, "run_name": "r"}
    again = build(saved, "verbose=false")
    assert again == build({**MINIMAL, "expansion_factor": 4, "run_name": "r"})


def test_a_key_left_out_means_what_it_meant_in_saelens_5(build: Build) -> None:
    cfg = build({**MINIMAL, "hook_layer": 3})
    assert cfg.n_batches_in_buffer == 20 * 32  # passes × rows: it counted passes
    elsewhere = {"dataset_trust_remote_code", "streaming", "verbose", "act_store_device", "checkpoint_path"}
    elsewhere |= {"n_batches_in_buffer"} | {
        name for name in DEFAULTS_5 if name.startswith("sae_lens_") or DEFAULTS_5[name] is None
    }
    compared = 0
    for name in DEFAULTS_5.keys() - MINIMAL.keys() - elsewhere:
        for part in (cfg, cfg.sae, cfg.logger):
            if name in names(type(part)):
                assert getattr(part, name) == DEFAULTS_5[name], name
                compared += 1
    assert compared > 40
    assert cfg.checkpoint_path.startswith("checkpoints/")
    assert cfg.act_store_device == cfg.device == "cpu"
    assert cfg.lr_end == pytest.approx(3e-5)
    assert cfg.sae.d_sae == 4 * 512
    assert cfg.sae.decoder_init_norm is None  # decoder_heuristic_init: false
    assert cfg.logger.run_name == "2048-L1-0.001-LR-0.0003-Tokens-2.000e+06"
    assert cfg.output_path == "checkpoints/2048-L1-0.001-LR-0.0003-Tokens-2.000e+06"


@pytest.mark.parametrize(
    ("architecture", "given", "expected"),
    [
        ("gated", {"l1_coefficient": 2, "l1_warm_up_steps": 7}, {"l1_coefficient": 2.0, "l1_warm_up_steps": 7}),
        (
            "jumprelu",
            {"l1_coefficient": 2, "l1_warm_up_steps": 7, "jumprelu_bandwidth": 0.01},
            {"l0_coefficient": 2.0, "l0_warm_up_steps": 7, "jumprelu_bandwidth": 0.01, "jumprelu_init_threshold": 1e-3},
        ),
        ("topk", {"activation_fn_kwargs": {"k": 32}}, {"k": 32, "rescale_acts_by_decoder_norm": False}),
        ("topk", {}, {"k": 100}),
    ],
)
def test_other_architectures_are_translated(
    build: Build, architecture: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    flat = {key: value for key, value in MINIMAL.items() if key != "scale_sparsity_penalty_by_decoder_norm"}
    cfg = build({**flat, "architecture": architecture, **given})
    assert cfg.sae.architecture() == architecture
    assert {name: getattr(cfg.sae, name) for name in expected} == expected


def test_overrides_take_either_layouts_names_and_the_last_one_counts(build: Build) -> None:
    cfg = build(
        MINIMAL, "sae.l1_coefficient=3", "l1_coefficient=4", "logger.wandb_project=mine", "sae.decoder_init_norm=0.2",
        "expansion_factor=2", "llm_device=cuda:1", "output_path=here",
    )  # fmt: skip
    assert (cfg.sae.l1_coefficient, cfg.sae.decoder_init_norm, cfg.sae.d_sae) == (4.0, 0.2, 1024)
    assert (cfg.logger.wandb_project, cfg.llm_device, cfg.output_path) == ("mine", "cuda:1", "here")
    assert build({**MINIMAL, "expansion_factor": 8}, "sae.d_sae=100").sae.d_sae == 100
    assert build({**MINIMAL, "d_sae": 100}, "expansion_factor=3").sae.d_sae == 3 * 512


def test_what_has_no_counterpart_is_named_with_the_reason(
    build: Build, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(repository / FLAT)
    left_out, buffer = capsys.readouterr().err.splitlines()
    assert "b_dec_init_method (the decoder bias always starts at zero)" in left_out
    assert left_out.count("(") == 6
    assert "32 passes are 256 rows, mixed at a time" in buffer
    build(repository / OURS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("use_ghost_grads=true", "use_ghost_grads is true, which SAELens 6 cannot do: there are no ghost gradients"),
        ("b_dec_init_method=geometric_median", "say b_dec_init_method: zeros if that is well"),
        ("scale_sparsity_penalty_by_decoder_norm=false", "always weighs a feature with its decoder norm"),
        ("init_encoder_as_decoder_transpose=false", "always starts as the decoder transposed"),
        ("activation_fn=tanh-relu", "activation_fn is 'tanh-relu'"),
        ("activation_fn_kwargs={k: 3}", "unknown key in the config: activation_fn_kwargs.k"),
        ("architecture=standrad", "should be 'standard', 'gated', 'jumprelu' or 'topk'"),
        ("normalize_activations=constant_norm_rescale", "normalize_activations"),
        ("hook_layer=4", "hook_layer is 4 but hook_name is blocks.3.hook_resid_post"),
        ("expansion_factor=1.5", "expansion_factor is 1.5"),
    ],
)
def test_what_saelens_6_cannot_do_is_refused_in_one_line(build: Build, override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build(MINIMAL, override)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [key for key in MINIMAL if key.endswith(("method", "decoder", "norm", "transpose"))])
def test_a_default_that_cannot_be_had_any_more_is_refused_too(build: Build, key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is left out, which meant"):
        build({name: value for name, value in MINIMAL.items() if name != key})


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1.0e-3\nseed: 1\nlr: 2.0e-3\n")
    with pytest.raises(UserError, match="the key 'lr' stands there twice"):
        config.read_config(tmp_path / "config.yaml")


def test_a_value_that_grows_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)), "lr: *a39"]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"write the value out in place of \*a0"):
        config.read_config(tmp_path / "config.yaml")


def test_keys_of_this_project_stand_in_a_flat_file_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**MINIMAL, "checkpoint_every_minutes": 5}))
    values = config.read_config(tmp_path / "config.yaml", ["checkpoints_kept=3"])
    extra = config.extra_settings(values)
    assert (extra["checkpoint_every_minutes"], extra["checkpoints_kept"]) == (5.0, 3)
    assert config.extra_settings({"checkpoint_every_minutes": None})["checkpoint_every_minutes"] is None
    config.build_config(values)


def test_as_published_changes_the_defaults_of_our_keys_alone(build: Build, repository: Path) -> None:
    plain = config.extra_settings({})
    published = config.extra_settings({"as_published": True})
    changed = {key: published[key] for key in plain if published[key] != plain[key]}
    assert changed == {"as_published": True, "rope_original_context": 16_384, "decoder_init": "published"}
    own = {"as_published": True, "rope_original_context": None, "decoder_init": "saelens"}
    assert {key: config.extra_settings(own)[key] for key in own} == own  # what is given counts
    assert build(repository / FLAT, "as_published=true") == build(repository / OURS)
    with pytest.raises(UserError, match="as_published is 'maybe'"):
        config.extra_settings({"as_published": "maybe"})
    with pytest.raises(UserError, match="sae.decoder_init_norm is null"):
        build(repository / OURS, "decoder_init=published", "sae.decoder_init_norm=null")


def test_the_names_that_are_checked_before_saelens_is_imported_are_its_own() -> None:
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    assert set(sae_lens_keys.TOP) == set(config.field_types(LanguageModelSAERunnerConfig))
    assert set(sae_lens_keys.LOGGER) == set(config.field_types(LoggingConfig))
    configs = [config_class for _, config_class in SAE_TRAINING_CLASS_REGISTRY.values()]
    keys = (config.field_types(config_class) for config_class in configs)
    assert set(sae_lens_keys.SAE) == {"architecture"}.union(*keys)
