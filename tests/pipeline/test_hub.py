"""What is pushed to the Hub comes back from it: data sets, models and SAEs, real clients and a server on loopback."""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hub_client import HubClient, assert_one_line, contents, local_rows, stored_rows  # noqa: E402
from hub_server import NARROW_TOKEN, SIGNATURE, TOKEN, HubServer  # noqa: E402

OPENTHOUGHTS = "training/datasets/prepare_openthoughts_dataset.py"
MERGE = "training/datasets/merge_datasets.py"
UPLOAD = "training/upload_sae.py"
LOAD_ROWS = (
    "import json, sys; from transformer_lens_r1.shared.data import load_rows;"
    "from transformer_lens_r1.shared.errors import run;"
    "run(lambda: print(json.dumps(load_rows(sys.argv[1], columns=['tokens'])['tokens'][:])))"
)
CUT = None
CARD = b"---\nlicense: mit\nconfigs:\n- config_name: metadata\n  data_files: train.parquet\n---\n"


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
    assert stored_rows(hub.repos[name]) == rows


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
    assert stored_rows(hub.repos["datasets/researcher/tiny-llama-OpenThoughts-114k-tokenized"]) == rows

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


def test_a_narrow_token_may_push_where_it_may_write(hub: HubServer, client: HubClient, parts: list[Path]) -> None:
    done = client.run(MERGE, *parts, "--hf_user", "laboratory", "--hf_token", NARROW_TOKEN)
    assert done.status == 0, done.err
    assert list(hub.repos) == ["datasets/laboratory/part-0-part-1"]


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
        "from transformer_lens_r1.shared.errors import run; source = find_sae(sys.argv[1], sys.argv[2], revision='v1');"
        "run(lambda: print(load_sae(source).W_enc.double().sum().item(), source.weights_hash()))"
    )
    steering = (
        "import sys; from lm_eval_sae.steering.sae_rows import find_sae, read_config;"
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
