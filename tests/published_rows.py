"""Rows of text as TransformerLens 2.x made them, its rule written out one step after the other."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def rows_as_published(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    processes: int,
    add_bos: bool = False,
) -> list[list[int]]:
    """The rows of a map in `processes` processes, without those that it would pad; `tokenizer` has a pad of its own."""
    rows = []
    share, one_more = divmod(len(documents), processes)
    waiting = list(documents)
    for process in range(processes):
        own = [waiting.pop(0) for _ in range(share + (process < one_more))]
        while own:
            batch, own = own[:1000], own[1000:]
            text = tokenizer.eos_token.join(batch)
            characters = -(-len(text) // 20)
            pieces = []
            for _ in range(20):
                pieces.append(text[:characters])
                text = text[characters:]
            assert text == ""
            padded = tokenizer(pieces, padding=True)["input_ids"]
            assert len({len(piece) for piece in padded}) == 1
            ids = [token for piece in padded for token in piece if token != tokenizer.pad_token_id]
            start = [tokenizer.bos_token_id] if add_bos else []
            while len(start) + len(ids) >= context:
                rows.append(start + ids[: context - len(start)])
                ids = ids[context - len(start) :]
    return rows
