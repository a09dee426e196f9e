"""A Hub-like server, a process that runs scripts against it, and data for them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import HubClient
from hub_server import HubServer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hub clients' folder: caches, and rows that wait for their push."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[tuple[HubServer, HubClient]]:
    with HubServer() as server:
        environment = {**server.environment(token=None), "HF_HOME": str(home)}
        with HubClient(environment) as client:
            yield server, client


@pytest.fixture
def hub(running: tuple[HubServer, HubClient]) -> HubServer:
    server = running[0]
    for state in (server.repositories, server.lfs, server.faults, server.requests):
        state.clear()
    return server


@pytest.fixture
def client(running: tuple[HubServer, HubClient], hub: HubServer) -> HubClient:
    return running[1]


@pytest.fixture
def openthoughts(tmp_path: Path) -> Path:
    """A few records in the schema of OpenThoughts-114k."""
    rows = [
        {
            "problem": f"What is {i} + {i}?", "deepseek_reasoning": f"Wait, {i} + {i} = {2 * i}.",
            "deepseek_solution": f"\\boxed{{{2 * i}}}", "domain": "math", "test_cases": None, "starter_code": None,
        }
        for i in range(40)
    ]  # fmt: skip
    folder = tmp_path / "openthoughts"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two token data sets of ten rows, as the scripts make them."""
    folders = []
    for number in range(2):
        folder = tmp_path / f"part-{number}"
        folder.mkdir()
        rows = [[1000 * number + 8 * row + place for place in range(8)] for row in range(10)]
        pq.write_table(pa.table({"tokens": rows}), folder / "train-00000-of-00001.parquet")
        tokenizer = {"name": "tiny", "vocabulary_sha256": "0" * 64, "bos_id": 0, "eos_id": 1}
        source = {"dataset": f"someone/part-{number}", "records": 9, "rows_available": 10, "licence": "CC-BY-4.0"}
        info = {"tokenizer": tokenizer, "vocab_size": 4000, "rows": 10, "source": source}
        (folder / "provenance.json").write_text(json.dumps(info))
        folders.append(folder)
    return folders
