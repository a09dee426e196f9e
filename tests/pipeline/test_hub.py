"""What is pushed to the Hub comes back from it: data sets, against a server that speaks its protocol."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hub_server import TOKEN, HubServer  # noqa: E402


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def run_python(
    hub: HubServer, home: Path, *argv: str | Path, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    """Run python with the Hub's client pointed at the server (which it reads once, when it is imported)."""
    environment = {**os.environ, **hub.environment(token=token), "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *map(str, argv)], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def openthoughts(tmp_path: Path) -> Path:
    """A few records in the schema of OpenThoughts-114k."""
    from datasets import Dataset

    rows = [
        {
            "problem": f"What is {i} + {i}?", "deepseek_reasoning": f"Wait, {i} + {i} = {2 * i}.",
            "deepseek_solution": f"\\boxed{{{2 * i}}}", "domain": "math", "test_cases": None, "starter_code": None,
        }
        for i in range(40)
    ]  # fmt: skip
    folder = tmp_path / "openthoughts"
    folder.mkdir()
    Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    return folder


def test_a_pushed_token_data_set_loads_from_the_hub(
    hub: HubServer, tmp_path: Path, openthoughts: Path, tiny_llama: Path, repository: Path
) -> None:
    done = run_python(
        hub, tmp_path / "home", repository / "training/datasets/prepare_openthoughts_dataset.py",
        "--model_path", tiny_llama, "--dataset_path", openthoughts, "--context_size", "64",
        "--output_dir", tmp_path / "tokens", "--hf_user", "researcher", "--private",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    (name,) = hub.repos
    assert name.startswith("datasets/researcher/") and hub.private[name]
    assert json.loads(hub.repos[name]["provenance.json"])["context_size"] == 64

    # what an earlier, larger push left behind must not be read with it: a second push takes it away
    hub.repos[name]["train-00001-of-00002.parquet"] = hub.repos[name]["train-00000-of-00001.parquet"]
    push = (
        "import sys; from pathlib import Path; from transformer_lens_r1.data import push_folder;"
        "push_folder(Path(sys.argv[1]), sys.argv[2], repo_type='dataset', token=None, private=True)"
    )
    again = run_python(hub, tmp_path / "home", "-c", push, tmp_path / "tokens", name.removeprefix("datasets/"))
    assert again.returncode == 0, again.stderr

    load = (
        "import sys; from transformer_lens_r1.data import load_rows; import json;"
        "print(json.dumps(load_rows(sys.argv[1], columns=['tokens'])['tokens'][:]))"
    )
    from_hub = run_python(hub, tmp_path / "home", "-c", load, name.removeprefix("datasets/"))
    from_disk = run_python(hub, tmp_path / "home", "-c", load, tmp_path / "tokens")
    assert from_hub.returncode == 0, from_hub.stderr
    assert json.loads(from_hub.stdout) == json.loads(from_disk.stdout) != []


def test_a_push_without_a_login_ends_before_the_work(
    hub: HubServer, tmp_path: Path, openthoughts: Path, tiny_llama: Path, repository: Path
) -> None:
    done = run_python(
        hub, tmp_path / "home", repository / "training/datasets/prepare_openthoughts_dataset.py",
        "--model_path", tiny_llama, "--dataset_path", openthoughts, "--context_size", "64",
        "--hf_user", "researcher", token=None,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the Hub does not know who you are") and done.stderr.count("\n") == 1
    assert hub.repos == {}
