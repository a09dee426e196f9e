"""Random checkpoints of every kind of Llama and Qwen2 that the two loaders must get right."""

from collections.abc import Callable
from pathlib import Path

import pytest
from random_checkpoints import KINDS, save_random_checkpoint


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[str], Path]:
    """A function that saves a random checkpoint of a kind, with the tokenizer of `tiny_llama`, once for all tests."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("checkpoint")
            save_random_checkpoint(*KINDS[kind], folders[kind], tokenizer=tiny_llama)
        return folders[kind]

    return make
