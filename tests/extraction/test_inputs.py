"""Rows of tokens from text or from a column of ids, and the ids that count nowhere."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from published_rows import rows_as_published
from reasonscore.inputs import ignored_ids, sample_rows
from transformers import PreTrainedTokenizerBase

from transformer_lens_r1 import load_tokenizer
from transformer_lens_r1.shared.data import load_rows
from transformer_lens_r1.shared.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_llama)


def sample(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **changes: object) -> torch.Tensor:
    arguments = {"context_size": 128, "prepend_bos": False, "n_samples": 50, "vocab_size": 327, **changes}
    return sample_rows(dataset, tokenizer, **arguments)


def test_a_column_of_ids_is_shuffled_and_cut_like_the_data_library_does(
    tokenizer: PreTrainedTokenizerBase, fixture_tokens: Path
) -> None:
    dataset = load_rows(fixture_tokens)
    got = sample(dataset, tokenizer, column="tokens", n_samples=5)
    assert got.tolist() == dataset.shuffle(seed=42)[:5]["tokens"]
    assert len(sample(dataset, tokenizer, column="tokens", n_samples=10**6)) == len(dataset)


def test_text_is_sampled_in_rows_of_the_context_that_start_with_bos_if_the_sae_wants_it(
    tokenizer: PreTrainedTokenizerBase, fixture_text: Path
) -> None:
    options = {"column": "text", "context_size": 64, "prepend_bos": True, "n_samples": 9}
    got = sample(load_rows(fixture_text), tokenizer, **options)
    assert got.shape == (9, 64) and set(got[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert torch.equal(got, sample(load_rows(fixture_text), tokenizer, **options))


def test_published_rows_are_those_of_four_processes_shuffled(
    tokenizer: PreTrainedTokenizerBase, fixture_text: Path
) -> None:
    text = load_rows(fixture_text)
    options = {"column": "text", "context_size": 64, "prepend_bos": True, "n_samples": 9}
    rows = rows_as_published(text["text"][:], tokenizer, context=64, processes=4, add_bos=True)
    expected = Dataset.from_dict({"tokens": rows}).shuffle(seed=42)[:9]["tokens"]
    assert sample(text, tokenizer, published=True, **options).tolist() == expected
    assert sample(text, tokenizer, **options).tolist() != expected


def test_rows_that_cannot_be_scored_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="ids from 3 to 5000"):
        sample(Dataset.from_dict({"tokens": [[3, 5000]]}), tokenizer, column="tokens")
    with pytest.raises(UserError, match="expected text, or rows of token ids"):
        sample(Dataset.from_dict({"tokens": [1.5]}), tokenizer, column="tokens")
    with pytest.raises(UserError, match="no row of 128 tokens"):
        sample(Dataset.from_dict({"text": ["short"]}), tokenizer, column="text")


def test_ignored_ids_are_the_users_then_the_saes_then_bos_and_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    def ignored(choice: list[int] | None, excluded: list[int] | bool) -> list[int]:
        return ignored_ids(choice, excluded, tokenizer, vocab_size=327)

    assert ignored([], [7]) == []
    assert ignored([5], [7]) == [5]
    assert ignored(None, [7]) == [7]
    assert ignored(None, True) == sorted(set(tokenizer.all_special_ids))
    assert ignored(None, False) == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    with pytest.raises(UserError, match="--ignore_tokens 327: the model knows ids 0 to 326"):
        ignored([5, 327], [7])
