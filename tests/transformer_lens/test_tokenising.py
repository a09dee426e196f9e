"""Rows of tokens equal TransformerLens' own for every kind of tokenizer, and never depend on how they are computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_rows import rows_as_published
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformer_lens.utilities import tokenize_and_concatenate as reference
from transformers import PreTrainedTokenizerFast

from transformer_lens_r1 import load_tokenizer, tokenize_and_concatenate
from transformer_lens_r1.tokenising import DOCUMENTS_PER_GROUP, Group, RowMaker, encode_documents

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
KINDS = ("byte-level BPE", "unigram", "wordpiece")
PADS = ("pad is eos", "no pad", "own pad")
WORDS = ["wait", "so", "the", "sum", "of", "two", "and", "17", "is", "not", "23", ",", "but", "é", "漢字", "🙂", "\n\n"]


def document(number: int) -> str:
    """One of endlessly many documents, of 0 to 60 words."""
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, size=int(draw.integers(0, 61))))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """2,300 documents: two whole groups and a part of one, some of them empty."""
    texts = [document(number) for number in range(2300)]
    assert "" in texts
    return texts


def train(kind: str, *, adds_bos: bool) -> Tokenizer:
    """A small tokenizer of one of the kinds that language models have."""
    if kind == "byte-level BPE":  # Llama-3, Qwen2, and the R1 distills of both
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet)
    elif kind == "unigram":  # SentencePiece
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=[BOS, EOS, PAD, "<unk>"], unk_token="<unk>")
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=[BOS, EOS, PAD, "[UNK]"])
    tokenizer.train_from_iterator((document(number) for number in range(300)), trainer)
    if adds_bos:
        ids = [(BOS, tokenizer.token_to_id(BOS))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=ids)
    return tokenizer


_trained: dict[tuple[str, bool], str] = {}


def make_tokenizer(kind: str, pad: str = "own pad", *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    if (kind, adds_bos) not in _trained:
        _trained[kind, adds_bos] = train(kind, adds_bos=adds_bos).to_str()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained[kind, adds_bos]), bos_token=BOS, eos_token=EOS
    )
    if pad != "no pad":
        tokenizer.pad_token = EOS if pad == "pad is eos" else PAD
    return tokenizer


def rows_of(texts: list[str], tokenizer: PreTrainedTokenizerFast, **options: Any) -> Group:
    return RowMaker(tokenizer=tokenizer, **options)(encode_documents(tokenizer, texts))


@pytest.mark.parametrize(("pad", "adds_bos"), [("pad is eos", True), ("no pad", False), ("own pad", True)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_those_of_transformer_lens(documents: list[str], kind: str, pad: str, adds_bos: bool) -> None:
    tokenizer = make_tokenizer(kind, pad, adds_bos=adds_bos)
    if adds_bos:
        assert tokenizer("the sum")["input_ids"][0] == tokenizer.bos_token_id
    texts = Dataset.from_dict({"text": documents})
    rows = tokenize_and_concatenate(texts, tokenizer, context_size=64)["tokens"][:]
    expected = reference(
        texts, make_tokenizer(kind, pad, adds_bos=adds_bos), max_length=64, add_bos_token=False, num_proc=None
    )
    assert rows == expected["tokens"][:].tolist()
    assert len(rows) > 500
    assert not any(tokenizer.bos_token_id in row for row in rows)


@pytest.mark.parametrize("pad", PADS)
def test_a_row_that_transformer_lens_would_pad_is_dropped(pad: str) -> None:
    texts = Dataset.from_dict({"text": [document(number) for number in range(DOCUMENTS_PER_GROUP)] + ["so"]})
    rows = tokenize_and_concatenate(texts, make_tokenizer("unigram", pad), context_size=64)["tokens"][:]
    padded = reference(texts, make_tokenizer("unigram", pad), max_length=64, add_bos_token=False, num_proc=None)[
        "tokens"
    ][:].tolist()
    assert rows == padded[:-1]
    assert padded[-1][-60:] == [padded[-1][-1]] * 60


@pytest.mark.parametrize("add_bos", [False, True], ids=["", "rows start with bos"])
@pytest.mark.parametrize("kind", ["tiny-llama", "adds a bos"])
def test_published_rows_are_those_of_transformer_lens_2(
    documents: list[str], tiny_llama: Path, kind: str, add_bos: bool
) -> None:
    tokenizer = load_tokenizer(tiny_llama) if kind == "tiny-llama" else make_tokenizer("byte-level BPE", adds_bos=True)
    documents = documents[:2299]  # 1,150 and 1,149, each a whole group and a part of one
    texts, options = Dataset.from_dict({"text": documents}), {"context_size": 64, "add_bos": add_bos}
    rows = tokenize_and_concatenate(texts, tokenizer, shards=2, **options)["tokens"][:]
    assert rows == rows_as_published(documents, tokenizer, context=64, processes=2, add_bos=add_bos)
    assert len(rows) > 1000
    # the split is part of the rule, and today's rows are others
    assert rows != tokenize_and_concatenate(texts, tokenizer, shards=1, **options)["tokens"][:]
    assert rows != tokenize_and_concatenate(texts, tokenizer, **options)["tokens"][:]
    inside = sum(row[add_bos:].count(tokenizer.bos_token_id) for row in rows)
    assert inside == 0 if kind == "tiny-llama" else inside > 70  # 20 pieces of each of 4 batches, less a remainder


def test_published_rows_of_few_documents(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    with_pad = f"the {tokenizer.pad_token}" + " sum of two" * 40  # a pad that is spelt out goes with the padding
    few = Dataset.from_dict({"text": [with_pad, "", document(4)]})  # fewer than shards, and one without text
    rows = tokenize_and_concatenate(few, tokenizer, context_size=8, shards=4)["tokens"][:]
    assert len(rows) > 2 and rows == rows_as_published(few["text"][:], tokenizer, context=8, processes=3)
    short = Dataset.from_dict({"text": ["so"]})
    assert len(tokenize_and_concatenate(short, tokenizer, context_size=8, shards=4)) == 0  # none is padded


def test_an_unusable_row_is_left_out_and_counted() -> None:
    tokenizer = make_tokenizer("byte-level BPE")
    texts = ["the sum is " * 40, f"so {PAD} is spelt out", "the sum is " * 40]
    group = rows_of(texts, tokenizer, context_size=16)
    whole = rows_of(texts, make_tokenizer("byte-level BPE", "no pad"), context_size=16)
    assert (group.unusable, whole.unusable) == (1, 0)
    assert len(whole.rows) == len(group.rows) + 1
    assert tokenizer.pad_token_id in whole.rows and tokenizer.pad_token_id not in group.rows
    assert rows_of(texts, tokenizer, context_size=16, vocab_size=0).rows.shape == (0, 16)


texts_of_a_group = st.lists(st.text(st.sampled_from("the sum 漢字🙂é\n,.0123"), max_size=60), max_size=40)
property_test = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@property_test
@given(
    texts=texts_of_a_group,
    kind=st.sampled_from(KINDS),
    pad=st.sampled_from(PADS),
    context_size=st.integers(2, 40),
    add_bos=st.booleans(),
    vocab_size=st.none() | st.integers(4, 400),
)
def test_rows_have_their_length_known_ids_and_lose_no_token(
    texts: list[str], kind: str, pad: str, context_size: int, add_bos: bool, vocab_size: int | None
) -> None:
    tokenizer = make_tokenizer(kind, pad)
    rows, tokens, unusable = rows_of(
        texts, tokenizer, context_size=context_size, add_bos=add_bos, vocab_size=vocab_size
    )
    limit = len(tokenizer) if vocab_size is None else vocab_size
    assert rows.shape[1] == context_size
    assert ((rows >= 0) & (rows < limit)).all()
    if pad == "own pad":
        assert tokenizer.pad_token_id not in rows
    # every token is in a row, in a row that was left out, or in the remainder, which is shorter than a row
    stream = [token for text in texts for token in (*tokenizer(text, add_special_tokens=False)["input_ids"], None)][:-1]
    stream = [tokenizer.eos_token_id if token is None else token for token in stream]
    assert tokens == len(stream)
    text_length = context_size - add_bos
    assert 0 <= tokens - (len(rows) + unusable) * text_length < text_length
    if not unusable:
        assert rows[:, add_bos:].reshape(-1).tolist() == stream[: len(rows) * text_length]
    if add_bos:
        assert (rows[:, 0] == tokenizer.bos_token_id).all()


@property_test
@given(texts=texts_of_a_group, kind=st.sampled_from(KINDS), adds_bos=st.booleans())
def test_ids_are_those_of_the_tokenizers_own_call(texts: list[str], kind: str, adds_bos: bool) -> None:
    tokenizer = make_tokenizer(kind, adds_bos=adds_bos)
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    assert encode_documents(tokenizer, texts).to_pylist() == expected


def test_truncation_and_padding_that_a_tokenizer_file_asks_for_are_not_done() -> None:
    tokenizer = make_tokenizer("byte-level BPE")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=6)
    (ids,) = encode_documents(tokenizer, ["the sum of two and two is not five"]).to_pylist()
    assert ids == make_tokenizer("byte-level BPE")("the sum of two and two is not five")["input_ids"]
