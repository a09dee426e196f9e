"""The stream gives SAELens' batches and can be continued anywhere; the trainer's step gives SAELens' weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from sae_training import activations
from sae_training.trainer import Trainer, firing_counts

from transformer_lens_r1.loading import load_model

HOOK, EXCLUDED = "blocks.1.hook_resid_post", [0, 1, 2]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_model(tiny_llama)


@pytest.fixture
def rows(fixture_tokens: Path) -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files=str(fixture_tokens / "*.parquet"), split="train")


@pytest.fixture
def make_stream(model: Any, rows: datasets.Dataset) -> Callable[..., Any]:
    """Makes a stream over some of the rows; its buffer holds 6 rows of 127 tokens."""

    def make(n_rows: int = 300, **values: Any) -> Any:
        source = activations.ActivationSource(model, HOOK, (1, None), torch.tensor(EXCLUDED))
        settings = dict(rows_per_pass=4, batch_size=100, buffer_size=6 * 127, mix_fraction=0.5, seed=7)
        return activations.ActivationStream(source, rows.select(range(n_rows)), **{**settings, **values})

    return make


@pytest.mark.parametrize("mix_fraction", [0.5, 0.0, 0.9])
def test_the_stream_gives_the_batches_of_saelens_store(
    make_stream: Callable[..., Any], model: Any, rows: datasets.Dataset, mix_fraction: float
) -> None:
    store = ActivationsStore(
        model=model, dataset=rows.select(range(300)), streaming=False, hook_name=HOOK, hook_head_index=None,
        context_size=128, d_in=256, n_batches_in_buffer=6, total_training_tokens=1, store_batch_size_prompts=4,
        train_batch_size_tokens=100, prepend_bos=False, normalize_activations="none", device=torch.device("cpu"),
        dtype="float32", seqpos_slice=(1, None), exclude_special_tokens=torch.tensor(EXCLUDED),
        activations_mixing_fraction=mix_fraction,
    )  # fmt: skip
    stream = make_stream(mix_fraction=mix_fraction)
    torch.manual_seed(7)
    for _ in range(40):
        torch.testing.assert_close(next(stream), next(store), rtol=0, atol=1e-6)  # the store's attention is eager


@pytest.mark.parametrize("before", [0, 1, 5, 9])
def test_a_stream_continues_where_its_state_was_taken(make_stream: Callable[..., Any], before: int) -> None:
    stream, other = make_stream(), make_stream(seed=1)
    for _ in range(before):
        next(stream)
    other.load_state_dict(stream.state_dict())
    for _ in range(20):
        assert next(stream).equal(next(other))


def test_batches_that_wait_in_the_queue_are_part_of_the_state(make_stream: Callable[..., Any]) -> None:
    plain, ahead, other = make_stream(), make_stream(remember=4), make_stream(seed=1, remember=4)
    expected = [next(plain) for _ in range(30)]
    queue = activations.Prefetched(ahead, 2)  # type: ignore[attr-defined]
    for batch in expected[:10]:
        assert next(queue).equal(batch)
    other.load_state_dict(queue.state_dict())
    queue.close()
    # Saved and loaded once more while some of the waiting batches are still to come.
    assert next(other).equal(expected[10])
    third = make_stream(seed=2)
    third.load_state_dict(other.state_dict())
    for batch in expected[11:]:
        assert next(third).equal(batch)


def test_after_the_last_row_comes_the_first(make_stream: Callable[..., Any], rows: datasets.Dataset) -> None:
    stream = make_stream(n_rows=10, mix_fraction=0.0)
    read = [stream._next_rows() for _ in range(5)]  # 20 rows
    assert torch.cat(read).tolist() == 2 * rows["tokens"][:10]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("standard", {"l1_coefficient": 3.0}), ("topk", {"k": 8}), ("jumprelu", {}), ("gated", {})],
)
@pytest.mark.parametrize("apply_b_dec_to_input", [False, True])
def test_steps_give_the_weights_and_counts_of_saelens_trainer(
    architecture: str, options: dict[str, Any], apply_b_dec_to_input: bool
) -> None:
    config = {"architecture": architecture, "d_in": 32, "d_sae": 96, "device": "cpu", "dtype": "float32",
              "apply_b_dec_to_input": apply_b_dec_to_input, **options}  # fmt: skip
    cfg = SAETrainerConfig(
        total_training_samples=300 * 30, train_batch_size_samples=300, lr=1e-3, lr_end=1e-4, dead_feature_window=3
    )
    trainers = []
    for make, extra in (
        (SAETrainer, {}),
        (Trainer, {"between_steps": lambda trainer: None, "save_snapshot": lambda trainer: None}),
    ):
        torch.manual_seed(0)
        sae = TrainingSAE.from_dict(config)
        generator = torch.Generator().manual_seed(1)
        batches = iter([torch.randn(300, 32, generator=generator) * 3 for _ in range(30)])
        trainers.append(make(cfg=cfg, sae=sae, data_provider=batches, evaluator=None, **extra))
        trainers[-1].fit()
    theirs, ours = trainers
    for name, weight in theirs.sae.state_dict().items():
        difference = (ours.sae.state_dict()[name] - weight).norm() / weight.norm().clamp(min=1e-6)
        assert difference < 1e-4, f"{name} differs by {difference}"
    assert (theirs.act_freq_scores > 0).any()
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        changed = getattr(theirs, name) != getattr(ours, name)
        assert changed.double().mean() < 0.02, name  # rounding may tip an activation that is next to nothing


def test_firing_counts_are_exact_beyond_a_byte() -> None:
    features = torch.rand(1000, 7).sub(0.3).relu()
    features[:, 0] = 1.0
    assert firing_counts(features).tolist() == (features > 0).sum(0).tolist()
    assert firing_counts(features.to_sparse_coo()).tolist() == (features > 0).sum(0).tolist()
