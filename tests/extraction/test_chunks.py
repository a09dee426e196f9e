"""States and chunks on the disk: what belongs together is put together, and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from transformer_lens_r1.shared.errors import UserError

RUN = {"--alpha": 0.7, "--expand_range": (1, 2), "the text": {"tokens": "abc"}}


@pytest.fixture
def saved(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/saved_sums.py")


def random_sums(saved: ModuleType, d_sae: int) -> object:
    from reasonscore.score import ActivationSums

    generator = torch.Generator().manual_seed(4)
    return ActivationSums(
        torch.rand(3, 4, d_sae, generator=generator, dtype=torch.float64),
        torch.randint(9, (3, 4), generator=generator),
        torch.randint(9, (2,), generator=generator),
        torch.randint(9, (d_sae,), generator=generator),
        torch.rand(d_sae, generator=generator),
    )


def write_chunks(saved: ModuleType, folder: Path, sums: object, n_chunks: int, **about: object) -> None:
    d_sae = len(sums.maximum)
    for chunk in range(n_chunks):
        part = sums.of_features(saved.chunk_features(d_sae, chunk, n_chunks))
        described = {"fingerprint": RUN, "d_sae": d_sae, **about}
        saved.save_sums(saved.chunk_path(folder, chunk, n_chunks), part, described)


@pytest.mark.parametrize(("d_sae", "n_chunks"), [(10, 3), (23, 12), (5, 5), (9, 2)])
def test_chunks_are_cut_as_numpy_cuts_and_merged_in_numeric_order(
    saved: ModuleType, tmp_path: Path, d_sae: int, n_chunks: int
) -> None:
    parts = np.array_split(np.arange(d_sae), n_chunks)
    cut = [list(range(d_sae))[saved.chunk_features(d_sae, chunk, n_chunks)] for chunk in range(n_chunks)]
    assert cut == [part.tolist() for part in parts]
    sums = random_sums(saved, d_sae)
    write_chunks(saved, tmp_path, sums, n_chunks)
    merged, about = saved.merge_chunks(tmp_path)
    for name in ("by_block", "positions_by_block", "n_matches", "n_active", "maximum"):
        assert torch.equal(getattr(merged, name), getattr(sums, name)), name
    assert about["d_sae"] == d_sae


def test_missing_foreign_and_damaged_chunks_are_refused_in_one_line(saved: ModuleType, tmp_path: Path) -> None:
    sums = random_sums(saved, 12)
    with pytest.raises(UserError, match="no chunks in"):
        saved.merge_chunks(tmp_path)
    write_chunks(saved, tmp_path, sums, 4)
    third = saved.chunk_path(tmp_path, 2, 4)
    content = third.read_bytes()
    third.unlink()
    with pytest.raises(UserError, match="lacks chunk 2 of 0 to 3"):
        saved.merge_chunks(tmp_path)
    other = {**RUN, "--alpha": 0.5, "the text": {"tokens": "xyz"}}
    saved.save_sums(third, sums.of_features(slice(6, 9)), {"fingerprint": other, "d_sae": 12})
    with pytest.raises(UserError, match=r"chunk_2_of_4.* differ in --alpha \(0.5 there, 0.7 here\), the text$"):
        saved.merge_chunks(tmp_path)
    with pytest.raises(UserError, match="chunk of another run, which differs in --alpha"):
        saved.check_same_run(tmp_path, RUN)
    saved.save_sums(third, sums.of_features(slice(3, 6)), {"fingerprint": RUN, "d_sae": 12})
    saved.save_sums(third, sums.of_features(slice(3, 7)), {"fingerprint": RUN, "d_sae": 12})
    with pytest.raises(UserError, match="does not hold features 6 to 8"):
        saved.merge_chunks(tmp_path)
    third.write_bytes(content[:100])
    with pytest.raises(UserError, match="damaged"):
        saved.merge_chunks(tmp_path)
    third.write_bytes(content)
    with pytest.raises(UserError, match="of another run than chunk 0 of 3"):
        saved.check_chunk_folder(tmp_path, 0, 3)
    saved.check_chunk_folder(tmp_path, 1, 4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        saved.check_chunk_folder(tmp_path, 1, 4)
    saved.save_sums(saved.chunk_path(tmp_path, 0, 3), sums.of_features(slice(0, 4)), {})
    with pytest.raises(UserError, match="of several runs: of 3 and of 4"):
        saved.merge_chunks(tmp_path)


def test_a_state_comes_back_only_to_its_own_run(saved: ModuleType, tmp_path: Path) -> None:
    folder = saved.state_folder(tmp_path / "scores")
    assert folder == tmp_path / "scores.unfinished"
    sums = random_sums(saved, 7)
    state = saved.PassState(folder, "rank_0", RUN)
    state.check()
    assert state.load() is None
    state.save(sums, 32)
    again = saved.PassState(folder, "rank_0", RUN)
    again.check()
    loaded, next_row = again.load()
    assert next_row == 32 and torch.equal(loaded.by_block, sums.by_block) and torch.equal(loaded.maximum, sums.maximum)
    for name in ("rank_0", "rank_1"):  # other ranks of another run are seen too
        other = saved.PassState(folder, name, {**RUN, "--expand_range": (0, 0)})
        with pytest.raises(UserError, match=r"--expand_range \(\[1, 2\] there, \[0, 0\] here\).* delete .*ed"):
            other.check()
    again.remove()
    assert not folder.exists()


def test_a_process_killed_while_it_writes_leaves_the_last_state(saved: ModuleType, tmp_path: Path) -> None:
    state = saved.PassState(tmp_path, "rank_0", RUN)
    state.save(random_sums(saved, 7), 16)
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from transformer_lens_r1.shared.files import atomic_file\n"
        "with atomic_file(sys.argv[2]) as half:\n"
        "    half.write_bytes(b'half of it')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(Path(saved.__file__).parent), str(state.path)])
    assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 2
    state.check()
    assert [path.name for path in tmp_path.iterdir()] == ["rank_0.safetensors"] and state.load()[1] == 16
