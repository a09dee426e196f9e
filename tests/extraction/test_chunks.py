"""States and chunks on the disk: what belongs together is put together, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reasonscore import chunks
from reasonscore.score import ActivationSums

from transformer_lens_r1.shared.errors import UserError

RUN = {"--alpha": 0.7, "--expand_range": (1, 2), "--dataset_path": {"tokens_sha256": "abc"}}


def random_sums(d_sae: int) -> ActivationSums:
    generator = torch.Generator().manual_seed(4)
    return ActivationSums(
        torch.rand(3, 4, d_sae, generator=generator, dtype=torch.float64),
        torch.randint(9, (3, 4), generator=generator),
        torch.randint(9, (2,), generator=generator),
        torch.randint(9, (d_sae,), generator=generator),
        torch.rand(d_sae, generator=generator),
        torch.rand(4, d_sae, generator=generator, dtype=torch.float64),
    )


def write_chunk(folder: Path, sums: ActivationSums, chunk: int, n_chunks: int, **changed: object) -> Path:
    part = sums.of_features(chunks.chunk_features(len(sums.maximum), chunk, n_chunks))
    path = chunks.chunk_path(folder, chunk, n_chunks)
    chunks.save_sums(path, part, {"run": {"--num_chunks": n_chunks, **RUN, **changed}})
    return path


@pytest.mark.parametrize(("d_sae", "n_chunks"), [(10, 3), (23, 12), (5, 5), (9, 2)])
def test_chunks_are_cut_as_numpy_cuts_and_merged_in_numeric_order(tmp_path: Path, d_sae: int, n_chunks: int) -> None:
    parts = np.array_split(np.arange(d_sae), n_chunks)
    cut = [list(range(d_sae))[chunks.chunk_features(d_sae, chunk, n_chunks)] for chunk in range(n_chunks)]
    assert cut == [part.tolist() for part in parts]
    sums = random_sums(d_sae)
    for chunk in range(n_chunks):
        write_chunk(tmp_path, sums, chunk, n_chunks)
    merged, _ = chunks.merge_chunks(tmp_path)
    for name, values in vars(sums).items():
        assert torch.equal(getattr(merged, name), values), name


def test_missing_foreign_and_damaged_chunks_are_refused(tmp_path: Path) -> None:
    sums = random_sums(12)
    with pytest.raises(UserError, match="no chunks in"):
        chunks.merge_chunks(tmp_path)
    for chunk in (0, 1, 3):
        write_chunk(tmp_path, sums, chunk, 4)
    with pytest.raises(UserError, match="lacks chunk 2 of 0 to 3"):
        chunks.merge_chunks(tmp_path)
    third = write_chunk(tmp_path, sums, 2, 4, **{"--alpha": 0.5})
    with pytest.raises(UserError, match="chunk_2_of_4.* belongs to another run: --alpha is 0.5 there and 0.7 here"):
        chunks.merge_chunks(tmp_path)
    with pytest.raises(UserError, match="chunk_2_of_4.* belongs to another run"):
        chunks.check_chunk_folder(tmp_path, {"--num_chunks": 4, **RUN})
    third.write_bytes(third.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        chunks.merge_chunks(tmp_path)
    write_chunk(tmp_path, sums, 2, 4)
    chunks.check_chunk_folder(tmp_path, {"--num_chunks": 4, **RUN})
    write_chunk(tmp_path, sums, 0, 3)
    with pytest.raises(UserError, match="chunks of several runs"):
        chunks.merge_chunks(tmp_path)


def test_a_state_comes_back_only_to_its_own_run_and_without_what_a_killed_process_left(tmp_path: Path) -> None:
    output_dir, sums = tmp_path / "scores", random_sums(7)
    state = chunks.PassState(output_dir, "rank_0", RUN)
    assert state.load() is None
    state.save(sums, 32)
    half_written = state.path.with_name(f".{state.path.name}.1234.safetensors")
    half_written.write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"--expand_range is \[1, 2\] there and \[0, 0\] here; .* or delete"):
        chunks.PassState(output_dir, "rank_0", {**RUN, "--expand_range": (0, 0)})
    again = chunks.PassState(output_dir, "rank_0", RUN)
    loaded, next_row = again.load()
    assert next_row == 32 and torch.equal(loaded.by_block, sums.by_block) and torch.equal(loaded.maximum, sums.maximum)
    again.remove()
    assert not any(tmp_path.iterdir())
