"""What is pushed to the Hub comes back from it: data sets, models and SAEs, real clients and a server on loopback."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hub_client import HubClient, assert_one_line, contents, local_rows, stored_rows
from hub_server import SIGNATURE, TOKEN, HubServer
from random_checkpoints import KINDS, save_random_checkpoint

OPENTHOUGHTS = "training/datasets/prepare_openthoughts_dataset.py"
UPLOAD = "training/upload_sae.py"
TOKENISED = "datasets/researcher/tiny-llama-OpenThoughts-114k-tokenized"
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
    assert list(hub.repos) == [TOKENISED] and hub.repositories[TOKENISED].private
    # large files went the way of large files
    assert any(request.startswith("PUT /lfs/") for request in hub.requests)
    rows = local_rows(tmp_path / "tokens")
    load_rows = (
        "import json, sys; from transformer_lens_r1.shared.data import load_rows;"
        "print(json.dumps(load_rows(sys.argv[1], columns=['tokens'])['tokens'][:]))"
    )
    from_hub = client.evaluate(load_rows, TOKENISED.removeprefix("datasets/"), token=TOKEN)
    assert from_hub.status == 0, from_hub.err
    assert json.loads(from_hub.out) == rows != []

    card = hub.repos[TOKENISED]["README.md"].decode()
    info = json.loads(hub.repos[TOKENISED]["provenance.json"])
    for said in (
        "`openthoughts`", "Licence: not stated", "`tiny-llama`", "rows of 64 tokens", "seed 42", f"{len(rows)} rows",
        f"{64 * len(rows):,} tokens", f"python {OPENTHOUGHTS} --model_path tiny-llama",
        f"tokenizers {info['versions']['tokenizers']}",
    ):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card + json.dumps(info)

    # what an earlier, larger push left behind must not be read with it: a second push takes it away
    hub.repos[TOKENISED]["train-00001-of-00002.parquet"] = hub.repos[TOKENISED]["train-00000-of-00001.parquet"]
    again = client.run(
        OPENTHOUGHTS, "--model_path", tiny_llama, "--output_dir", tmp_path / "tokens", "--hf_user", "researcher",
        "--push_only", token=TOKEN,
    )  # fmt: skip
    assert again.status == 0, again.err
    assert stored_rows(hub.repos[TOKENISED]) == rows


def test_a_model_and_a_data_set_are_read_at_a_revision_which_the_card_names(
    hub: HubServer, client: HubClient, tmp_path: Path, openthoughts: Path, tiny_llama: Path
) -> None:
    hub.add("models/someone/tiny-llama", {path.name: path.read_bytes() for path in tiny_llama.iterdir()})
    records = {"train.parquet": (openthoughts / "train.parquet").read_bytes(), "README.md": CARD}
    hub.add("datasets/someone/thoughts", records)
    commits = {}
    for name in ("models/someone/tiny-llama", "datasets/someone/thoughts"):
        commits[name] = hub.repositories[name].tags["v1"] = hub.repositories[name].head()
    # the main branches are of no use
    hub.repos["models/someone/tiny-llama"]["config.json"] = b"{}"
    hub.repos["datasets/someone/thoughts"]["train.parquet"] = b"not parquet"
    flags = ["--model_path", "someone/tiny-llama", "--context_size", "64", "--hf_user", "researcher"]
    done = client.run(
        OPENTHOUGHTS, *flags, "--revision", "v1", "--dataset_path", "someone/thoughts@v1", "--output_dir",
        tmp_path / "tokens", token=TOKEN,
    )  # fmt: skip
    assert done.status == 0, done.err
    info = json.loads(hub.repos[TOKENISED]["provenance.json"])
    assert info["tokenizer"]["revision"] == info["source"]["revision"] == "v1"
    assert info["tokenizer"]["commit"] == commits["models/someone/tiny-llama"]
    assert info["source"]["commit"] == commits["datasets/someone/thoughts"]
    assert info["source"]["licence"] == "mit"
    assert stored_rows(hub.repos[TOKENISED]) == local_rows(tmp_path / "tokens") != []

    done = client.run(OPENTHOUGHTS, *flags, "--revision", "v9", "--dataset_path", openthoughts, token=TOKEN)
    assert_one_line(done, "someone/tiny-llama")
    flags[1] = str(tiny_llama)
    done = client.run(OPENTHOUGHTS, *flags, "--dataset_path", "someone/thoughts@v9", token=TOKEN)
    assert_one_line(done, "someone/thoughts")


def test_a_distill_loads_by_its_name_as_a_bridge_in_transformer_lens_and_in_saelens(
    hub: HubServer, client: HubClient, tmp_path: Path, tiny_llama: Path
) -> None:
    save_random_checkpoint(*KINDS["qwen2, theta 1e4"], tmp_path / "model", tokenizer=tiny_llama)
    files = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    hub.add("models/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", files)
    cut = hub.fail("GET /lfs/", CUT, times=1)  # the download is taken up again
    compare = """
import sys, torch
from transformers import AutoModelForCausalLM
from sae_lens.load_model import load_model as load_model_of_saelens
from transformer_lens import HookedTransformer
from transformer_lens_r1 import load_model, register_r1_distills
name, tokens = "DeepSeek-R1-Distill-Qwen-1.5B", torch.arange(5, 60)[None]
register_r1_distills()
with torch.no_grad():
    expected = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)(tokens).logits
    for model in (
        load_model(name),
        HookedTransformer.from_pretrained_no_processing(name, device="cpu"),
        load_model_of_saelens("HookedTransformer", name, device="cpu"),
    ):
        assert (model(tokens) - expected).abs().max() < 1e-5 * expected.abs().max()
"""
    done = client.evaluate(compare, tmp_path / "model")
    assert done.status == 0, done.err
    assert cut.seen == 1


def test_a_hub_that_does_not_give_out_a_model_is_one_line(
    hub: HubServer, client: HubClient, tmp_path: Path, tiny_llama: Path, openthoughts: Path
) -> None:
    for status in (401, CUT):
        name = f"someone/broken-llama-{status}"
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
    push = [UPLOAD, "--sae_path", sae, "--hf_repo", "researcher/tiny-sae", "--private"]
    for pattern, status in (("PUT /lfs/", CUT), ("POST .*/commit/", 429)):
        hub.faults.clear()
        fault = hub.fail(pattern, status)
        failed = client.run(*push, token=TOKEN)
        assert fault.seen > 0
        assert_one_line(failed, "run the same command again")
        assert TOKEN not in failed.out + failed.err and SIGNATURE not in failed.err
        assert contents(sae) == before
        assert not any(path.endswith(".safetensors") for files in hub.repos.values() for path in files)
    hub.faults.clear()
    done = client.run(*push, "--hf_token", TOKEN)
    assert done.status == 0, done.err
    assert TOKEN not in done.out + done.err and hub.repositories["models/researcher/tiny-sae"].private
    files = hub.repos["models/researcher/tiny-sae"]
    card = files["README.md"]
    # a second SAE in the same repository leaves the first one's card alone
    done = client.run(*push, "--sae_id", "other", token=TOKEN)
    assert done.status == 0 and files["README.md"] == card and b'"other")' in files["other/README.md"]
    load = (
        "import sys, torch; from sae_lens import SAE; local = SAE.load_from_disk(sys.argv[1]).state_dict()\n"
        "for sae_id in ('blocks.2.hook_resid_post', 'other'):\n"
        "    sae = SAE.from_pretrained('researcher/tiny-sae', sae_id)\n"
        "    back = sae.state_dict()\n"
        "    same = back.keys() == local.keys() and all(torch.equal(back[name], local[name]) for name in local)\n"
        "    print(sae.cfg.metadata.hook_name, same)"
    )
    loaded = client.evaluate(load, sae, token=TOKEN)
    assert loaded.out.split() == ["blocks.2.hook_resid_post", "True"] * 2, loaded.err


def test_pages_are_pushed_as_a_static_space(
    hub: HubServer, client: HubClient, tmp_path: Path, tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path
) -> None:
    scores, pages = tmp_path / "scores", tmp_path / "pages"
    inputs = [
        "--model_path", tiny_llama, "--sae_path", legacy_sae, "--dataset_path", fixture_tokens,
        "--column_name", "tokens", "--device", "cpu", "--n_samples", "4",
    ]  # fmt: skip
    scored = client.run("extraction/compute_score.py", *inputs, "--n_bootstrap", "0", "--output_dir", scores)
    assert scored.status == 0, scored.err
    show = ["extraction/compute_dashboard.py", *inputs, "--scores_dir", scores, "--topk", "1", "--output_dir", pages]
    refused = client.run(*show, "--hf_repo", "somebody/features", token=TOKEN)
    assert_one_line(refused, "somebody")
    assert not hub.repos and not pages.exists()
    hub.add("spaces/researcher/features", {"feature_3000.html": b"of an earlier push", "kept.txt": b""})
    done = client.run(*show, "--hf_repo", "researcher/features", token=TOKEN)
    assert done.status == 0, done.err
    assert TOKEN not in done.out + done.err
    made = {path.relative_to(pages).as_posix(): path.read_bytes() for path in pages.rglob("*") if path.is_file()}
    assert hub.repos["spaces/researcher/features"] == {**made, "kept.txt": b""}
    header = made["README.md"].decode().split("---")[1]
    assert "sdk: static" in header and "app_file: index.html" in header


def test_an_sae_is_read_at_a_revision_and_a_cut_connection_is_one_line(
    hub: HubServer, client: HubClient, legacy_sae: Path
) -> None:
    sae_id = "blocks.2.hook_resid_post"
    hub.add("models/someone/sae", {f"{sae_id}/{path.name}": path.read_bytes() for path in legacy_sae.iterdir()})
    repository = hub.repositories["models/someone/sae"]
    repository.tags["v1"] = repository.head()
    repository.files[f"{sae_id}/cfg.json"] = b"{}"
    extraction = (
        "import sys; sys.path.insert(0, 'extraction'); from reasonscore.sae import find_sae, load_sae;"
        "from transformer_lens_r1.shared.errors import run; source = find_sae(sys.argv[1], sys.argv[2], revision='v1');"
        "run(lambda: print(load_sae(source).W_enc.double().sum().item(), source.weights_sha256))"
    )
    steering = (
        "import sys; from lm_eval_sae.steering.sae_rows import find_sae, read_config;"
        "print(read_config(find_sae(None, release=sys.argv[1], sae_id=sys.argv[2], revision='v1')).d_sae)"
    )
    cut = hub.fail("GET /lfs/", CUT)
    failed = client.evaluate(extraction, "someone/sae", sae_id)
    assert cut.seen > 0
    assert_one_line(failed, "cannot load the weights of SAE someone/sae", "the connection to the Hub failed")
    hub.faults.clear()
    local = extraction.replace("sys.argv[2], revision='v1'", "sys.argv[2]")
    loaded = client.evaluate(extraction, "someone/sae", sae_id)
    assert loaded.status == 0, loaded.err
    assert loaded.out == client.evaluate(local, legacy_sae, sae_id).out != ""
    hub.add("models/someone/no-weights", {f"{sae_id}/cfg.json": (legacy_sae / "cfg.json").read_bytes()})
    hub.repositories["models/someone/no-weights"].tags["v1"] = hub.repositories["models/someone/no-weights"].head()
    hashed = extraction.replace("load_sae(source).W_enc.double().sum().item(), ", "")
    assert client.evaluate(hashed, "someone/no-weights", sae_id).out == "None\n"
    assert client.evaluate(steering, "someone/sae", sae_id).out == "1024\n"


def test_the_first_rows_of_a_large_data_set_come_without_the_rest(hub: HubServer, client: HubClient) -> None:
    for number in range(2):
        file = pa.BufferOutputStream()
        pq.write_table(
            pa.table({"text": [f"document {number} {index}" for index in range(1000)]}), file, row_group_size=100
        )
        files = {f"train-0000{number}.parquet": file.getvalue().to_pybytes(), "README.md": b"no header"}
        hub.add("datasets/someone/pile", {**hub.repos.get("datasets/someone/pile", {}), **files})
    code = (
        "import json; from transformer_lens_r1.shared.data import load_rows;"
        "print(json.dumps(load_rows('someone/pile', columns=['text'], first=7)['text'][:]))"
    )
    done = client.evaluate(code)
    assert done.status == 0, done.err
    assert json.loads(done.out) == [f"document 0 {index}" for index in range(7)]
    assert not any(request.endswith("train-00001.parquet") for request in hub.requests)
