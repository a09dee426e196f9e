"""What a rank takes from another over the network."""

import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from transformer_lens_r1.shared.ranks import Ranks


def test_a_rank_runs_no_code_that_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Planted:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "planted"),)

    buffer = io.BytesIO()
    torch.save(Planted(), buffer)
    content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    sent = [torch.tensor(len(content)), content]
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: tensor.copy_(sent.pop(0)))
    with pytest.raises(pickle.UnpicklingError):
        Ranks(rank=1, size=2).on_first(lambda: None, types=())
    assert sent == [] and not (tmp_path / "planted").exists()
