"""Rows of tokens: those that TransformerLens' own function gives, or a column of ids as it is."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from transformer_lens_r1 import load_tokenizer, tokenize_and_concatenate
from transformer_lens_r1.shared.data import load_rows
from transformer_lens_r1.shared.errors import UserError


@pytest.fixture
def text_rows(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/text_rows.py")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_llama)


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("n_documents", [37, 1050])
def test_rows_equal_those_of_transformer_lens(
    fixture_text: Path, tokenizer: PreTrainedTokenizerBase, n_documents: int, add_bos: bool
) -> None:
    from transformer_lens.utilities import tokenize_and_concatenate as reference

    texts = load_rows(fixture_text)
    texts = Dataset.from_dict({"text": [texts[index % len(texts)]["text"][:600] for index in range(n_documents)]})
    expected = reference(texts, tokenizer, max_length=128, add_bos_token=add_bos, num_proc=None)
    got = tokenize_and_concatenate(texts, tokenizer, context_size=128, add_bos=add_bos)
    assert torch.equal(torch.tensor(got["tokens"][:]), torch.stack(list(expected["tokens"])))


def test_a_group_too_short_for_a_row_gives_none_and_pads_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = Dataset.from_dict({"text": ["a short text"] * 3})
    assert len(tokenize_and_concatenate(texts, tokenizer, context_size=128)) == 0
    rows = tokenize_and_concatenate(Dataset.from_dict({"text": ["word " * 500]}), tokenizer, context_size=16)
    assert all(len(row) == 16 and tokenizer.pad_token_id not in row for row in rows["tokens"])


def test_a_text_that_spells_the_pad_token_costs_only_its_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "some words here " * 40 + tokenizer.pad_token + " some words here" * 40
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.pad_token_id in ids
    rows = tokenize_and_concatenate(Dataset.from_dict({"text": [text]}), tokenizer, context_size=8)["tokens"][:]
    whole = [ids[start : start + 8] for start in range(0, len(ids) - 7, 8)]
    assert rows == [row for row in whole if tokenizer.pad_token_id not in row] and len(rows) == len(whole) - 1


def test_a_long_document_gives_no_warning(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokenizer, "model_max_length", 10)
    tokenize_and_concatenate(Dataset.from_dict({"text": ["word " * 100]}), tokenizer, context_size=16)
    assert not caplog.records


def test_a_column_of_ids_is_shuffled_and_cut_like_the_data_library_does(
    text_rows: ModuleType, tokenizer: PreTrainedTokenizerBase, fixture_tokens: Path
) -> None:
    dataset = load_rows(fixture_tokens)
    got = sample(text_rows, dataset, tokenizer, column="tokens", n_samples=5)
    assert got.tolist() == dataset.shuffle(seed=42)[:5]["tokens"]
    assert len(sample(text_rows, dataset, tokenizer, column="tokens", n_samples=10**6)) == len(dataset)


def test_text_is_sampled_in_rows_of_the_context_that_start_with_bos_if_the_sae_wants_it(
    text_rows: ModuleType, tokenizer: PreTrainedTokenizerBase, fixture_text: Path
) -> None:
    dataset = load_rows(fixture_text)
    got = sample(text_rows, dataset, tokenizer, column="text", context_size=64, prepend_bos=True, n_samples=9)
    assert got.shape == (9, 64) and set(got[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert torch.equal(
        got, sample(text_rows, dataset, tokenizer, column="text", context_size=64, prepend_bos=True, n_samples=9)
    )


def test_rows_that_cannot_be_are_refused(text_rows: ModuleType, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="ids from 3 to 5000"):
        sample(text_rows, Dataset.from_dict({"tokens": [[3, 5000]]}), tokenizer, column="tokens")
    with pytest.raises(UserError, match="1 to 2 long"):
        sample(text_rows, Dataset.from_dict({"tokens": [[3], [3, 4]]}), tokenizer, column="tokens")
    with pytest.raises(UserError, match="expected text, or rows of token ids"):
        sample(text_rows, Dataset.from_dict({"tokens": [1.5]}), tokenizer, column="tokens")
    with pytest.raises(UserError, match="no row of 128 tokens"):
        sample(text_rows, Dataset.from_dict({"text": ["short"]}), tokenizer, column="text")


def test_ignored_ids_are_the_users_then_the_saes_then_bos_and_eos(
    text_rows: ModuleType, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert text_rows.ignored_ids([], [7], tokenizer, vocab_size=327) == []
    assert text_rows.ignored_ids([5], [7], tokenizer, vocab_size=327) == [5]
    assert text_rows.ignored_ids(None, [7], tokenizer, vocab_size=327) == [7]
    assert text_rows.ignored_ids(None, True, tokenizer, vocab_size=327) == sorted(set(tokenizer.all_special_ids))
    assert text_rows.ignored_ids(None, False, tokenizer, vocab_size=327) == [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ]
    with pytest.raises(UserError, match="--ignore_tokens 327: the model knows ids 0 to 326"):
        text_rows.ignored_ids([5, 327], [7], tokenizer, vocab_size=327)


def sample(
    text_rows: ModuleType, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **changes: object
) -> torch.Tensor:
    arguments = {"context_size": 128, "prepend_bos": False, "n_samples": 50, "vocab_size": 327, **changes}
    return text_rows.sample_rows(dataset, tokenizer, **arguments)
