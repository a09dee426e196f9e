"""Rows of tokens equal TransformerLens' own for every kind of tokenizer, and never depend on how they are computed."""

import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformer_lens.utilities import tokenize_and_concatenate as reference
from transformers import PreTrainedTokenizerFast

from transformer_lens_r1 import UserError, tokenize_and_concatenate
from transformer_lens_r1.tokenising import DOCUMENTS_PER_GROUP, RowMaker, encode_documents, tokenizer_hash

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


@pytest.mark.parametrize("adds_bos", [False, True], ids=["bare", "adds a bos"])
@pytest.mark.parametrize("pad", PADS)
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


def test_an_unusable_row_is_left_out_and_counted() -> None:
    tokenizer = make_tokenizer("byte-level BPE")
    texts = ["the sum is " * 40, f"so {PAD} is spelt out", "the sum is " * 40]
    group = RowMaker(tokenizer=tokenizer, context_size=16)(texts)
    whole = RowMaker(tokenizer=make_tokenizer("byte-level BPE", "no pad"), context_size=16)(texts)
    assert (group.unusable, whole.unusable) == (1, 0)
    assert len(whole.rows) == len(group.rows) + 1
    assert tokenizer.pad_token_id in whole.rows and tokenizer.pad_token_id not in group.rows
    assert RowMaker(tokenizer=tokenizer, context_size=16, vocab_size=0)(texts).rows.shape == (0, 16)


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
    make_rows = RowMaker(tokenizer=tokenizer, context_size=context_size, add_bos=add_bos, vocab_size=vocab_size)
    rows, tokens, unusable = make_rows(texts)
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
    assert [ids.tolist() for ids in encode_documents(tokenizer, texts)] == expected


def test_truncation_and_padding_that_a_tokenizer_file_asks_for_are_not_done() -> None:
    tokenizer = make_tokenizer("byte-level BPE")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=6)
    (ids,) = encode_documents(tokenizer, ["the sum of two and two is not five"])
    assert ids.tolist() == make_tokenizer("byte-level BPE")("the sum of two and two is not five")["input_ids"]


@pytest.fixture
def shards(load_script: Callable[[str], ModuleType], tmp_path: Path) -> ModuleType:
    return load_script("training/datasets/token_shards.py")


def as_text(record: dict[str, Any]) -> str:
    from transformer_lens_r1 import MalformedRow

    if record["text"].startswith("malformed"):
        raise MalformedRow("it says so")
    return record["text"]


def tokenise(shards: ModuleType, texts: list[str], folder: Path, **options: Any) -> tuple[list[list[int]], Any]:
    make_rows = RowMaker(tokenizer=options.pop("tokenizer", None) or make_tokenizer("unigram"), context_size=32)
    made, faults = shards.tokenise_records(
        Dataset.from_dict({"text": texts}), as_text, make_rows, folder=folder, max_bad_rows=1.0, **options
    )
    return made.rows()["tokens"][:] if made.files else [], (made, faults)


@settings(property_test, max_examples=8)
@given(
    order=st.permutations(range(6)),
    malformed=st.sets(st.integers(0, 2499), max_size=30),
    processes=st.integers(2, 4),
)
def test_rows_do_not_depend_on_processes_or_on_earlier_runs(
    shards: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    malformed: set[int],
    processes: int,
) -> None:
    texts = [document(250 * block + number) for block in order for number in range(250)] + [""] * 1000
    texts = ["malformed" if index in malformed else text for index, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("shards")
    one, (made, faults) = tokenise(shards, texts, folder / "one", num_proc=1)
    many, _ = tokenise(shards, texts, folder / "many", num_proc=processes)
    again, _ = tokenise(shards, texts, folder / "many", num_proc=processes)
    assert one == many == again
    assert [index for index, _ in faults] == sorted(malformed)
    usable = Dataset.from_dict({"text": [text for text in texts if text != "malformed"]})
    assert one == tokenize_and_concatenate(usable, make_tokenizer("unigram"), context_size=32)["tokens"][:]
    n_groups = -(-len(usable) // DOCUMENTS_PER_GROUP)
    assert 0 <= made.tokens - 32 * (len(one) + made.unusable_rows) < 32 * n_groups
    assert made.documents == len(usable)


def test_finished_groups_are_reused_and_never_where_anything_changed(
    shards: ModuleType, documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(texts: list[str], **options: Any) -> tuple[list[list[int]], str]:
        rows, _ = tokenise(shards, texts, tmp_path / "shards", num_proc=1, **options)
        return rows, capsys.readouterr().err

    first, said = run(documents)
    assert "finished by an earlier run" not in said
    files = sorted((tmp_path / "shards").rglob("*.arrow"))
    assert len(files) == 3
    # an interrupted run: two groups are there, a third is cut off, a fourth was being written
    files[1].write_bytes(files[1].read_bytes()[:100])
    (files[0].parent / f".{files[0].name}.x.arrow").write_bytes(b"half")
    again, said = run(documents)
    assert again == first and "2 of 3 groups had been finished by an earlier run" in said
    # one character of one document, the eos, the vocabulary's order: other groups
    changed, said = run([*documents[:1500], documents[1500] + "!", *documents[1501:]])
    assert "2 of 3 groups" in said and changed != first
    assert changed == tokenise(shards, [*documents[:1500], documents[1500] + "!", *documents[1501:]], tmp_path / "b")[0]
    capsys.readouterr()
    other = make_tokenizer("unigram")
    other.eos_token = BOS
    assert "earlier run" not in run(documents, tokenizer=other)[1]
    assert "earlier run" not in run(documents, tokenizer=make_tokenizer("wordpiece"))[1]
    shards.remove_shards(tmp_path)  # lies beside, and is not touched
    assert len(list((tmp_path / "shards").rglob("*.arrow"))) > 3


def test_an_interrupted_run_leaves_whole_groups_and_says_how_to_go_on(
    shards: ModuleType, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original, counter = shards._finish_group, itertools.count()

    def interrupted(group: np.ndarray) -> Any:
        if next(counter) == 2:
            raise KeyboardInterrupt
        return original(group)

    monkeypatch.setattr(shards, "_finish_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenise(shards, documents, tmp_path, num_proc=1)
    assert "2 of 3 groups are finished" in capsys.readouterr().err
    monkeypatch.undo()
    rows, _ = tokenise(shards, documents, tmp_path, num_proc=2)
    assert "2 of 3 groups had been finished" in capsys.readouterr().err
    assert rows == tokenise(shards, documents, tmp_path / "fresh", num_proc=1)[0]


def kill_this_process(group: np.ndarray) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_line(
    shards: ModuleType, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_finish_group", kill_this_process)
    with pytest.raises(UserError, match="memory ran out; the same command with a smaller --num_proc"):
        tokenise(shards, documents, tmp_path, num_proc=2)


def test_no_process_is_signalled_where_nothing_went_wrong(
    shards: ModuleType, documents: list[str], tmp_path: Path
) -> None:
    """Other libraries (Ray) set a handler, which forked processes have too: not all of them would end by the signal."""
    signalled = tmp_path / "signalled"
    before = signal.signal(signal.SIGTERM, lambda *_: signalled.touch())
    try:
        rows, _ = tokenise(shards, documents, tmp_path / "whole", num_proc=2)
        malformed = ["malformed"] * 2300
        made, faults = shards.tokenise_records(
            Dataset.from_dict({"text": malformed}),
            as_text,
            RowMaker(tokenizer=make_tokenizer("unigram"), context_size=32),
            folder=tmp_path / "early",
            num_proc=2,
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert rows and not made.files and len(faults) == shards.RECORDS_PER_SCAN
    assert not signalled.exists()


def interrupt_the_parent(group: np.ndarray) -> None:
    if group[0] == 0:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(3600)


def test_ctrl_c_waits_for_no_process_whatever_handlers_they_have(
    shards: ModuleType, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(shards, "_finish_group", interrupt_the_parent)
    before = signal.signal(signal.SIGTERM, lambda *_: None), signal.signal(signal.SIGINT, signal.default_int_handler)
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,), daemon=True)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tokenise(shards, documents, tmp_path, num_proc=2)
        assert "0 of 3 groups are finished" in capsys.readouterr().err
        assert multiprocessing.active_children() == [other], "none of its own is left, others are not touched"
    finally:
        other.kill()
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def test_the_hash_of_a_tokenizer_changes_with_its_rules() -> None:
    plain = tokenizer_hash(make_tokenizer("unigram"))
    assert plain == tokenizer_hash(make_tokenizer("unigram"))
    other = make_tokenizer("unigram")
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert plain != tokenizer_hash(other)
    assert (
        json.loads(make_tokenizer("unigram").backend_tokenizer.to_str())["model"]
        == json.loads(other.backend_tokenizer.to_str())["model"]
    )
