"""What is pushed to the Hub comes back from it, and its failures lose nothing: real clients, a server on loopback."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hub_client import Done, HubClient  # noqa: E402
from hub_server import NARROW_TOKEN, READ_TOKEN, SIGNATURE, TOKEN, HubServer  # noqa: E402

OPENTHOUGHTS = "training/datasets/prepare_openthoughts_dataset.py"
MERGE = "training/datasets/merge_datasets.py"
SUBSET = "extraction/prepare_openthoughts_subset.py"
UPLOAD = "training/upload_sae.py"
LOAD_ROWS = (
    "import json, sys; from transformer_lens_r1.data import load_rows; from transformer_lens_r1.errors import run;"
    "run(lambda: print(json.dumps(load_rows(sys.argv[1], columns=['tokens'])['tokens'][:])))"
)
CUT = None
CARD = b"---\nlicense: mit\nconfigs:\n- config_name: metadata\n  data_files: train.parquet\n---\n"


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


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def local_rows(folder: Path) -> list[list[int]]:
    """The rows of a data set on the disk, read without the data library."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path)["tokens"].to_pylist()]


def stored_rows(hub: HubServer, name: str) -> list[list[int]]:
    """The rows of a data set on the server, read without any Hub client."""
    files = hub.repos[name]
    return [
        row
        for path in sorted(files)
        if path.endswith(".parquet")
        for row in pq.read_table(pa.BufferReader(files[path]))["tokens"].to_pylist()
    ]


def assert_one_line(done: Done, *expected: str) -> None:
    """It ended with exit status 2 and one line that says what is expected, without a traceback."""
    assert done.status == 2, done.err
    assert done.error.startswith("error: "), done.err
    assert "Traceback" not in done.err
    for words in expected:
        assert words in done.error


def test_a_pushed_token_data_set_loads_from_the_hub_with_the_same_rows(
    hub: HubServer, client: HubClient, tmp_path: Path, openthoughts: Path, tiny_llama: Path
) -> None:
    done = client.run(
        OPENTHOUGHTS, "--model_path", tiny_llama, "--dataset_path", openthoughts, "--context_size", "64",
        "--output_dir", tmp_path / "tokens", "--hf_user", "researcher", "--private", token=TOKEN,
    )  # fmt: skip
    assert done.status == 0, done.err
    name = "datasets/researcher/tiny-llama-OpenThoughts-114k-tokenized"
    assert list(hub.repos) == [name] and hub.repositories[name].private
    # large files went the way of large files, and the commit came last
    assert any(request.startswith("PUT /lfs/") for request in hub.requests)
    rows = local_rows(tmp_path / "tokens")
    from_hub = client.evaluate(LOAD_ROWS, name.removeprefix("datasets/"), token=TOKEN)
    assert from_hub.status == 0, from_hub.err
    assert json.loads(from_hub.out) == rows != []

    card = hub.repos[name]["README.md"].decode()
    info = json.loads(hub.repos[name]["provenance.json"])
    for said in (
        "`openthoughts`", "Licence: not stated", "`tiny-llama`", "rows of 64 tokens", "seed 42", f"{len(rows)} rows",
        f"{64 * len(rows):,} tokens", f"python {OPENTHOUGHTS} --model_path tiny-llama",
        f"tokenizers {info['versions']['tokenizers']}",
    ):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card + json.dumps(info)

    # what an earlier, larger push left behind must not be read with it: a second push takes it away
    hub.repos[name]["train-00001-of-00002.parquet"] = hub.repos[name]["train-00000-of-00001.parquet"]
    again = client.run(
        OPENTHOUGHTS, "--model_path", tiny_llama, "--output_dir", tmp_path / "tokens", "--hf_user", "researcher",
        "--push_only", token=TOKEN,
    )  # fmt: skip
    assert again.status == 0, again.err
    assert stored_rows(hub, name) == rows


def test_a_model_and_a_data_set_are_read_at_a_revision_which_the_card_names(
    hub: HubServer, client: HubClient, tmp_path: Path, openthoughts: Path, tiny_llama: Path
) -> None:
    model = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    records = {"train.parquet": (openthoughts / "train.parquet").read_bytes(), "README.md": CARD}
    hub.add("models/someone/tiny-llama", model)
    hub.add("datasets/someone/thoughts", records)
    commits = {}
    for name in ("models/someone/tiny-llama", "datasets/someone/thoughts"):
        commits[name] = hub.repositories[name].tags["v1"] = hub.repositories[name].head()
    # the main branches are of no use
    hub.repos["models/someone/tiny-llama"]["config.json"] = b"{}"
    hub.repos["datasets/someone/thoughts"]["train.parquet"] = b"not parquet"
    flags = [
        "--model_path",
        "someone/tiny-llama",
        "--revision",
        "v1",
        "--context_size",
        "64",
        "--hf_user",
        "researcher",
    ]
    done = client.run(OPENTHOUGHTS, *flags, "--dataset_path", "someone/thoughts@v1", token=TOKEN)
    assert done.status == 0, done.err
    info = json.loads(hub.repos["datasets/researcher/tiny-llama-OpenThoughts-114k-tokenized"]["provenance.json"])
    assert info["tokenizer"]["revision"] == info["source"]["revision"] == "v1"
    assert info["tokenizer"]["commit"] == commits["models/someone/tiny-llama"]
    assert info["source"]["commit"] == commits["datasets/someone/thoughts"]
    assert info["source"]["licence"] == "mit"

    local = tmp_path / "tokens"
    done = client.run(
        OPENTHOUGHTS, "--model_path", tiny_llama, "--context_size", "64", "--dataset_path", openthoughts,
        "--output_dir", local,
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = local_rows(local)
    assert stored_rows(hub, "datasets/researcher/tiny-llama-OpenThoughts-114k-tokenized") == rows

    done = client.run(
        OPENTHOUGHTS, *flags, "--dataset_path", "someone/thoughts", "--dataset_revision", "v9", token=TOKEN
    )
    assert_one_line(done, "someone/thoughts")
    done = client.run(OPENTHOUGHTS, *flags[:2], "--revision", "v9", *flags[4:6], "--output_dir", tmp_path / "x")
    assert_one_line(done, "someone/tiny-llama")


def test_parts_of_a_merged_set_are_read_at_their_revisions(
    hub: HubServer, client: HubClient, tmp_path: Path, parts: list[Path]
) -> None:
    first = {path.name: path.read_bytes() for path in parts[0].iterdir()}
    hub.add("datasets/someone/part", first)
    repository = hub.repositories["datasets/someone/part"]
    repository.tags["v1"] = repository.head()
    repository.files["train-00000-of-00001.parquet"] = b"not parquet"
    done = client.run(MERGE, "someone/part@v1", parts[1], "--output_dir", tmp_path / "merged")
    assert done.status == 0, done.err
    assert sorted(local_rows(tmp_path / "merged")) == sorted(local_rows(parts[0]) + local_rows(parts[1]))
    info = json.loads((tmp_path / "merged" / "provenance.json").read_text())
    assert [part["commit"] for part in info["parts"]] == [repository.tags["v1"], None]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "CC-BY-4.0" in card and "someone/part-1" in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("pattern", "status", "expected"),
    [
        ("POST /api/repos/create", 403, "not allowed to do this (403)"),
        ("POST .*/preupload/", 401, "does not accept the token (401)"),
        ("POST .*/objects/batch", 429, "limits how often it may be asked (429)"),
        ("PUT /lfs/", 500, "a fault of its own (500)"),
        ("PUT /lfs/", CUT, "the connection to the Hub failed"),
        ("POST .*/commit/", 500, "a fault of its own (500)"),
        ("POST .*/commit/", CUT, "the connection to the Hub failed"),
    ],
)
def test_a_failed_push_is_one_line_keeps_the_data_and_can_be_done_alone(
    hub: HubServer,
    client: HubClient,
    tmp_path: Path,
    parts: list[Path],
    pattern: str,
    status: int | None,
    expected: str,
) -> None:
    merged = tmp_path / "merged"
    command = [*parts, "--output_dir", merged, "--hf_repo", "researcher/merged"]
    fault = hub.fail(pattern, status)
    failed = client.run(MERGE, *command, token=TOKEN)
    assert fault.seen > 0
    assert_one_line(failed, expected, f"the result lies in {merged}", "--push_only")
    assert TOKEN not in failed.out + failed.err and SIGNATURE not in failed.out + failed.err
    rows = local_rows(merged)
    before = contents(merged)
    assert len(rows) == 20
    assert not any(path.endswith(".parquet") for files in hub.repos.values() for path in files)

    hub.faults.clear()
    pushed = client.run(MERGE, *command, "--push_only", token=TOKEN)
    assert pushed.status == 0, pushed.err
    assert stored_rows(hub, "datasets/researcher/merged") == rows
    assert contents(merged) == before
    assert TOKEN not in pushed.out + pushed.err


@pytest.mark.parametrize(
    ("pattern", "status"),
    [("POST .*/objects/batch", 429), ("PUT /lfs/", 500), ("PUT /lfs/", CUT), ("POST .*/preupload/", 503)],
)
def test_a_passing_failure_is_tried_again(
    hub: HubServer, client: HubClient, tmp_path: Path, parts: list[Path], pattern: str, status: int | None
) -> None:
    fault = hub.fail(pattern, status, times=2)
    done = client.run(MERGE, *parts, "--output_dir", tmp_path / "merged", "--hf_repo", "researcher/merged", token=TOKEN)
    assert done.status == 0, done.err
    assert fault.seen == 2
    assert stored_rows(hub, "datasets/researcher/merged") == local_rows(tmp_path / "merged")
    assert TOKEN not in done.err and SIGNATURE not in done.err


def test_without_an_output_folder_the_rows_wait_for_a_failed_push(
    hub: HubServer, client: HubClient, home: Path, parts: list[Path]
) -> None:
    hub.fail("POST .*/commit/", 500)
    failed = client.run(MERGE, *parts, "--hf_user", "researcher", token=TOKEN)
    (waiting,) = (home / "reasoning-features").iterdir()
    assert_one_line(failed, f"the result lies in {waiting}", "--push_only")
    hub.faults.clear()
    other = client.run(MERGE, *parts, "--hf_user", "researcher", "--seed", "1", "--push_only", token=TOKEN)
    assert_one_line(other, "holds no finished rows to push")
    pushed = client.run(MERGE, *parts, "--hf_user", "researcher", "--push_only", token=TOKEN)
    assert pushed.status == 0, pushed.err
    assert len(stored_rows(hub, "datasets/researcher/part-0-part-1")) == 20
    assert not waiting.exists()


@pytest.mark.parametrize(
    ("flags", "token", "expected"),
    [
        (["--hf_user", "researcher"], None, "there is no Hub token"),
        (["--hf_user", "researcher"], "hf_wrongTokenThatNobodyHas", "does not accept the token (401)"),
        (["--hf_user", "stranger"], TOKEN, "may push for researcher, laboratory, readers only"),
        (["--hf_user", "researcher"], READ_TOKEN, "may read but not write"),
        (["--hf_user", "readers"], TOKEN, "may read but not write"),
        (["--hf_user", "researcher"], NARROW_TOKEN, "may read but not write"),
        (["--hf_repo", "researcher/theirs"], TOKEN, "was not made by these scripts"),
        (["--hf_repo", "researcher/public", "--private"], TOKEN, "exists and is public"),
        (["--hf_user", "researcher", "--hf_token", "two words"], None, "characters that no token has"),
        (["--hf_repo", "nobody"], TOKEN, "expected user/name"),
        (["--output_dir", "nowhere", "--push_only"], TOKEN, "--push_only needs to know where"),
    ],
)
def test_what_the_hub_would_refuse_is_found_before_the_work(
    hub: HubServer, client: HubClient, home: Path, parts: list[Path], flags: list[str], token: str | None, expected: str
) -> None:
    hub.add("datasets/researcher/theirs", {"data.parquet": b"theirs"})
    hub.add("datasets/researcher/public", {"provenance.json": b"{}"})
    before = {name: dict(files) for name, files in hub.repos.items()}
    # the parts are no data sets: reading them at all would end in another error
    done = client.run(MERGE, parts[0] / "no", parts[1] / "no", *flags, token=token)
    assert_one_line(done, expected)
    assert done.err.count("\n") == 1
    assert "two words" not in done.err and (token is None or token not in done.err)
    assert hub.repos == before
    assert not any(request.startswith(("POST", "PUT")) for request in hub.requests)


def test_a_narrow_token_may_push_where_it_may_write(hub: HubServer, client: HubClient, parts: list[Path]) -> None:
    done = client.run(MERGE, *parts, "--hf_user", "laboratory", "--hf_token", NARROW_TOKEN)
    assert done.status == 0, done.err
    assert list(hub.repos) == ["datasets/laboratory/part-0-part-1"]


@pytest.mark.parametrize(
    ("name", "pattern", "status", "expected"),
    [
        ("part-a", "GET /api/datasets/someone", 401, "someone/part-a"),
        ("part-b", "GET /api/datasets/someone", 403, "someone/part-b"),
        ("part-c", "GET /api/datasets/someone", 500, "a fault of its own (500)"),
        ("part-d", "GET /lfs/", 403, "(403)"),
        ("part-e", "GET /lfs/", 429, "(429)"),
        ("part-f", "GET /lfs/", 500, "(500)"),
        ("part-g", "GET /lfs/", CUT, "the connection to the Hub failed"),
    ],
)
def test_a_failed_download_is_one_line_and_the_next_one_works(
    hub: HubServer,
    client: HubClient,
    tmp_path: Path,
    parts: list[Path],
    name: str,
    pattern: str,
    status: int | None,
    expected: str,
) -> None:
    # names and rows of their own, because what was downloaded once is taken from the cache
    rows = [[ord(name[-1]) + place for place in range(8)]] * 200
    pq.write_table(pa.table({"tokens": rows}), parts[0] / "train-00000-of-00001.parquet")
    hub.add(f"datasets/someone/{name}", {path.name: path.read_bytes() for path in parts[0].iterdir()})
    command = [f"someone/{name}", parts[1], "--output_dir", tmp_path / "merged"]
    fault = hub.fail(pattern, status)
    failed = client.run(MERGE, *command, token=TOKEN)
    assert fault.seen > 0
    assert_one_line(failed, f"someone/{name}", expected)
    assert TOKEN not in failed.err and SIGNATURE not in failed.err
    assert not (tmp_path / "merged").exists()
    hub.faults.clear()
    worked = client.run(MERGE, *command, token=TOKEN)
    assert worked.status == 0, worked.err
    assert sorted(local_rows(tmp_path / "merged")) == sorted(rows + local_rows(parts[1]))


def test_a_model_is_pulled_though_the_connection_is_cut_and_a_hub_that_fails_is_one_line(
    hub: HubServer, client: HubClient, tmp_path: Path, tiny_llama: Path, openthoughts: Path
) -> None:
    hub.add("models/someone/cut-llama", {path.name: path.read_bytes() for path in tiny_llama.iterdir()})
    cut = hub.fail("GET /lfs/", CUT, times=1)
    logits = (
        "import sys, torch; from transformer_lens_r1 import load_model;"
        "print(load_model(sys.argv[1])(torch.arange(9)[None]).double().sum().item())"
    )
    pulled = client.evaluate(logits, "someone/cut-llama")
    assert pulled.status == 0, pulled.err
    assert cut.seen == 1
    assert pulled.out == client.evaluate(logits, tiny_llama).out != ""

    for number, status in enumerate((401, 403, 429, 500, CUT)):
        name = f"someone/broken-llama-{number}"
        hub.add(f"models/{name}", {path.name: path.read_bytes() for path in tiny_llama.iterdir()})
        fault = hub.fail(f"/{name}/resolve/", status)
        failed = client.run(
            OPENTHOUGHTS, "--model_path", name, "--dataset_path", openthoughts, "--output_dir", tmp_path / "out",
            token=TOKEN,
        )  # fmt: skip
        assert fault.seen > 0
        assert_one_line(failed, name)
        assert TOKEN not in failed.err
        assert not (tmp_path / "out").exists()


def test_a_pushed_sae_loads_by_its_repository_and_id_and_a_failed_push_changes_nothing(
    hub: HubServer, client: HubClient, tmp_path: Path, legacy_sae: Path
) -> None:
    sae = tmp_path / "sae"
    shutil.copytree(legacy_sae, sae)
    before = contents(sae)
    for pattern, status in (
        ("POST /api/repos/create", 403), ("PUT /lfs/", 500), ("PUT /lfs/", CUT), ("POST .*/commit/", 429),
        ("GET /api/whoami-v2", 401),
    ):  # fmt: skip
        hub.faults.clear()
        fault = hub.fail(pattern, status)
        failed = client.run(UPLOAD, "--sae_path", sae, "--hf_repo", "researcher/tiny-sae", token=TOKEN)
        assert fault.seen > 0
        assert_one_line(failed)
        assert TOKEN not in failed.out + failed.err and SIGNATURE not in failed.err
        assert contents(sae) == before
        assert not any(path.endswith(".safetensors") for files in hub.repos.values() for path in files)
    hub.faults.clear()
    done = client.run(UPLOAD, "--sae_path", sae, "--hf_repo", "researcher/tiny-sae", token=TOKEN)
    assert done.status == 0, done.err
    assert "README.md" in hub.repos["models/researcher/tiny-sae"]
    load = (
        "from sae_lens import SAE; sae = SAE.from_pretrained('researcher/tiny-sae', 'blocks.2.hook_resid_post');"
        "print(sae.cfg.d_sae, sae.cfg.metadata.hook_name, sae.W_dec.double().sum().item())"
    )
    loaded = client.evaluate(load)
    local = client.evaluate(
        "import sys; from sae_lens import SAE; print(SAE.load_from_disk(sys.argv[1]).W_dec.double().sum().item())", sae
    )
    assert loaded.out.split() == ["1024", "blocks.2.hook_resid_post", *local.out.split()], loaded.err


def test_an_sae_is_read_at_a_revision_and_a_cut_connection_is_one_line(
    hub: HubServer, client: HubClient, legacy_sae: Path
) -> None:
    sae_id = "blocks.2.hook_resid_post"
    hub.add("models/someone/sae", {f"{sae_id}/{path.name}": path.read_bytes() for path in legacy_sae.iterdir()})
    repository = hub.repositories["models/someone/sae"]
    repository.tags["v1"] = repository.head()
    repository.files[f"{sae_id}/cfg.json"] = b"{}"
    extraction = (
        "import sys; sys.path.insert(0, 'extraction'); from sae_io import find_sae, load_sae;"
        "from transformer_lens_r1.errors import run; source = find_sae(sys.argv[1], sys.argv[2], revision='v1');"
        "run(lambda: print(load_sae(source).W_enc.double().sum().item(), source.weights_hash()))"
    )
    steering = (
        "import sys; from lm_eval_sae.sae_rows import find_sae, read_config;"
        "print(read_config(find_sae(None, release=sys.argv[1], sae_id=sys.argv[2], revision='v1')).d_sae)"
    )
    cut = hub.fail("GET /lfs/", CUT)
    failed = client.evaluate(extraction, "someone/sae", sae_id)
    assert cut.seen > 0
    assert_one_line(failed, "cannot load the weights of SAE someone/sae", "the connection to the Hub failed")
    assert client.evaluate(steering, "someone/sae", sae_id).status != 0
    hub.faults.clear()
    local = extraction.replace("sys.argv[2], revision='v1'", "sys.argv[2]")
    loaded = client.evaluate(extraction, "someone/sae", sae_id)
    assert loaded.status == 0, loaded.err
    assert loaded.out == client.evaluate(local, legacy_sae, sae_id).out != ""
    assert client.evaluate(steering, "someone/sae", sae_id).out == "1024\n"


def test_no_credential_is_left_anywhere(
    hub: HubServer, client: HubClient, home: Path, tmp_path: Path, parts: list[Path], openthoughts: Path
) -> None:
    """Planted tokens, signed addresses included, are in no output and no file, however the runs end."""
    said = []
    for place, (pattern, status) in enumerate(
        [(None, 0), ("GET /api/whoami-v2", 401), ("PUT /lfs/", CUT), ("POST .*/commit/", 403), ("PUT /lfs/", 500)]
    ):
        hub.faults.clear()
        if pattern is not None:
            hub.fail(pattern, status)
        flags = ["--output_dir", tmp_path / f"out-{place}", "--hf_repo", f"researcher/leak-{place}"]
        said.append(client.run(MERGE, *parts, *flags, "--hf_token", TOKEN))
        said.append(client.run(MERGE, *parts, *flags, token=TOKEN))
        flags = ["--dataset_path", openthoughts, "--num_samples", "6", "--hf_repo", f"researcher/leak-text-{place}"]
        said.append(client.run(SUBSET, *flags, "--hf_token", TOKEN))
    assert {done.status for done in said} == {0, 2}
    # a defect keeps its traceback, which shows the code but no values
    hub.faults.clear()
    defect = (
        "import sys; from pathlib import Path; from transformer_lens_r1.hub import push_folder\n"
        "push_folder(Path(sys.argv[2]), 'researcher/defect', repo_type=None, token=sys.argv[1], private='yes', no=1)"
    )
    said.append(client.evaluate(defect, TOKEN, parts[0]))
    assert "Traceback" in said[-1].err
    for done in said:
        for secret in (TOKEN, SIGNATURE):
            assert secret not in done.out + done.err
    searched = 0
    for folder in (home, tmp_path):
        for path in folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                searched += 1
                assert TOKEN.encode() not in content and SIGNATURE.encode() not in content, path
                assert TOKEN not in path.name
    assert searched > 20
    published = [body for files in hub.repos.values() for body in files.values()]
    assert published and not any(TOKEN.encode() in body for body in published)
