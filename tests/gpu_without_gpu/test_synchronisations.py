"""Where the host waits for a GPU, in training, scoring and dashboards: these functions, and no other.

The stages run on a pretended device (pretended_cuda.py), in a process of their own. Without a GPU this also shows
that no operation mixes devices. A synchronisation that is listed here is known, not wanted.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_cuda import MASK, PAGEABLE, READ, SIZE, TO_DEVICE, TO_HOST, pretended_cuda

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="the pretended device needs a CUDA build of torch; this one is for the CPU"
)

FOLDER = Path(__file__).resolve().parent
Found = dict[tuple[str, str], int]
Result = tuple[dict[str, Found], dict[str, int]]


@pytest.fixture(scope="module")
def results(tiny_llama: Path, legacy_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Of each stage: by part of its run (what, "file.function") → how often; and how often each of its events came."""
    file = tmp_path_factory.mktemp("synchronisations") / "results.json"
    command = [sys.executable, str(FOLDER / "synchronisations.py"), str(tiny_llama), str(legacy_sae), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]

    def by_key(rows: list[tuple[str, str, int]]) -> Found:
        return {(what, place): times for what, place, times in rows}

    return {
        stage: ({part: by_key(rows) for part, rows in result["found"].items()}, result["times"])
        for stage, result in json.loads(file.read_text()).items()
    }


def test_the_pretended_device_tells_what_waits_from_what_does_not() -> None:
    with pretended_cuda([FOLDER]) as device:
        on_cpu = torch.arange(6.0)
        x = on_cpu.pin_memory().to("cuda:0", non_blocking=True)
        y = (x * 2 + torch.ones(6, device="cuda:0")).sum()
        x.masked_fill_(x > 3, 0)
        torch.zeros(0).to("cuda:0")
        assert y.device.type == "cuda" and device.take() == {}

        on_cpu.to("cuda:0", non_blocking=True)
        on_cpu.to("cuda:0")
        x.to("cpu", non_blocking=True)
        on_cpu.copy_(x)
        assert bool((x > 3).any()) and y.item() == 1
        x[x > 3] = x[x > 3]
        (x > 3).nonzero()
        place = "test_synchronisations.test_the_pretended_device_tells_what_waits_from_what_does_not"
        expected = {PAGEABLE: 1, TO_DEVICE: 1, TO_HOST: 2, READ: 2, MASK: 2, SIZE: 1}
        assert device.take() == {(what, place): times for what, times in expected.items()}


def test_scoring_waits_where_a_state_is_saved_and_for_nothing_else_of_ours(results: dict[str, Result]) -> None:
    found, times = results["scoring"]
    saved = times["batches"] - 1
    check, tensors = (READ, "one_pass._check_finite"), 4
    assert found["pass"] == {check: 2}  # after the first batch and at the end
    assert found["pass with states"] == {
        check: 2 + saved,
        (TO_HOST, "chunks.save_sums"): tensors * saved,
    }
    assert found["continued"] == {check: 1, (TO_DEVICE, "score.ActivationSums.to"): tensors}


def test_training_waits_for_nothing_but_the_log(results: dict[str, Result]) -> None:
    found, times = results["training"]
    assert found["norm estimate"] == {}
    # 25 steps of 1,000, with a line for W&B and one for the progress bar after each tenth.
    assert times["steps"] == 25 and times["logs"] == 2 < times["refills"] < times["passes"] < times["steps"]
    assert found["steps"] == {
        (READ, "trainer.Trainer._estimate_norm"): 1,  # its result
        (READ, "sae_trainer.SAETrainer.build_train_step_log_dict"): 7 * times["logs"],
        (READ, "sae_trainer._unwrap_item"): 4 * times["logs"],
    }


def test_the_dashboards_pass_waits_once_for_each_of_a_batchs_results(results: dict[str, Result]) -> None:
    found, times = results["dashboards"]
    batches = times["batches"]
    assert found["pass"] == {
        (TO_DEVICE, "activations.store_activations"): 2 * batches,  # ids, and which of them count
        (READ, "activations.store_activations"): batches,  # whether all is finite
        (TO_HOST, "activations.store_activations"): batches,
        (MASK, "activations.store_activations"): 2 * batches,  # features and residual stream that count
        (TO_DEVICE, "sae.encoder_of.cut"): 3,  # once: the shown features' indices, for each of the encoder's parameters
        (TO_HOST, "activations.Correlations.of"): 8,  # once: the sums
    }
