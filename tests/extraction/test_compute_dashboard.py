"""compute_dashboard.py: pages for the features asked for, which open without a network, and an index of them."""

import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import compute_dashboard
import numpy as np
import pytest
import torch
from feature_pages import activations as activations_module
from feature_pages import pages as pages_module
from safetensors.torch import load_file, save_file

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file


@pytest.fixture
def scores_dir(legacy_sae: Path, tmp_path: Path) -> Path:
    """Scores of the fixture's SAE, written by hand: feature i scores -i, except that 49 is the best."""
    folder = tmp_path / "scores"
    folder.mkdir()
    score = -torch.arange(1024.0)
    score[49] = 5
    rest = {name: torch.full((1024,), 0.25) for name in ("max_activation", "firing_frequency", "entropy")}
    # Intervals, as the scores have them, of the best features only.
    low, high = (torch.full((1024,), math.nan) for _ in range(2))
    low[49], high[49] = 4.5, 5.5
    statistics = {"score": score, "word_means": torch.rand(1024, 2), "score_low": low, "score_high": high, **rest}
    torch.save(score, folder / "feature_scores.pt")
    save_file(statistics, folder / "feature_stats.safetensors", metadata={"words": '["wait", "<b>hmm"]'})
    sha256 = hash_file(legacy_sae / "sae_weights.safetensors")
    (folder / "run.json").write_text(json.dumps({"tokens": 1000, "sae": {"weights_sha256": sha256}}))
    return folder


@pytest.fixture
def flags(tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path, scores_dir: Path, tmp_path: Path) -> list[str]:
    return [
        *("--model_path", str(tiny_llama), "--sae_path", str(legacy_sae)),
        *("--dataset_path", str(fixture_tokens), "--column_name", "tokens", "--n_samples", "6"),
        *("--device", "cpu", "--scores_dir", str(scores_dir), "--output_dir", str(tmp_path / "pages")),
    ]


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the model's ends ran, in order: `embed` once for each forward pass."""
    import transformer_lens_r1

    ran: list[str] = []
    load = transformer_lens_r1.load_model

    def watched(*args: object, **options: object) -> object:
        model = load(*args, **options)
        twin = model.twin
        for name, module in (("embed", twin.model.embed_tokens), ("norm", twin.model.norm), ("unembed", twin.lm_head)):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
        return model

    monkeypatch.setattr(transformer_lens_r1, "load_model", watched)
    return ran


def embedded_data(page: str) -> dict:
    return json.loads(re.search(r"return (\{.*\});", page).group(1))["DASHBOARD_DATA"]


def test_the_best_features_get_pages_and_an_index_from_one_pass_up_to_the_hook(
    flags: list[str], tmp_path: Path, forward_passes: list[str]
) -> None:
    compute_dashboard.main(
        [*flags, "--minibatch_size_tokens", "4", "--topk", "2", "--dtype", "float32", "--separate_files"]
    )
    assert forward_passes == ["embed", "embed"]  # 6 rows, 4 at a time
    folder = tmp_path / "pages"
    assert {path.name for path in folder.glob("*.html")} == {"index.html", "feature_49.html", "feature_0.html"}
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert index.index("feature_49.html") < index.index("feature_0.html")
    assert "<mark>" in index and "<b>hmm" not in index
    assert index.count('class="interval"') == 1 and "[4.5, 5.5]" in index
    listed = json.loads((folder / "features.json").read_text())
    assert [(one["feature"], one["rank"], one["page"]) for one in listed] == [
        (49, 1, "feature_49.html"), (0, 2, "feature_0.html")
    ]  # fmt: skip
    assert all(one["snippet"][1] and html.escape(one["snippet"][1]) in index for one in listed)
    record = json.loads((folder / "dashboards.json").read_text())
    assert record["row_rule"] == "stream" and record["rope_original_context"] is None
    licences = [path.read_text() for path in sorted((folder / "assets").glob("LICENSE.*"))]
    assert len(licences) == 2 and "Bostock" in licences[0] and "Plotly" in licences[1]


def test_distinct_features_are_shown_and_the_index_names_the_similar_ones(
    flags: list[str], tmp_path: Path, legacy_sae: Path, scores_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae, pages = shutil.copytree(legacy_sae, tmp_path / "sae"), tmp_path / "pages"
    weights = load_file(sae / "sae_weights.safetensors")
    for name in ("W_enc", "b_enc"):  # the features' activations correlate, their decoder rows are different
        weights[name][..., 362] = 2 * weights[name][..., 175]
    save_file(weights, sae / "sae_weights.safetensors")
    statistics = load_file(scores_dir / "feature_stats.safetensors")
    statistics["cluster"] = torch.arange(1024.0)
    statistics["cluster"][[1, 2]], statistics["cluster"][176] = 0, 175
    for name, share in (("on_words", 0.25), ("before", 0.125), ("after", 0.125), ("white_space", 0.5)):
        statistics[name] = torch.full((1024,), share)
        statistics[name][49] = math.nan
    save_file(statistics, scores_dir / "feature_stats.safetensors", metadata={"words": '["wait", "hmm"]'})
    (scores_dir / "run.json").write_text(json.dumps({"tokens": 1000, "sae": {"weights_sha256": None}}))
    flags = [*flags, "--sae_path", str(sae), "--dtype", "float32"]

    def also(*chosen: str) -> dict[int, str]:
        """What the index says of each feature shown."""
        compute_dashboard.main([*flags, *chosen])
        shown = [one["feature"] for one in json.loads((pages / "features.json").read_text())]
        index = (pages / "index.html").read_text(encoding="utf-8")
        cells = re.findall(r'<td class="similar".*?</td>', index, re.DOTALL)
        return dict(zip(shown, (" ".join(re.sub("<[^>]*>", "", cell).split()) for cell in cells), strict=True))

    assert also("--topk", "3") == {49: "", 0: "1 (rank 3), 2 (rank 4)", 3: ""}
    index = (pages / "index.html").read_text(encoding="utf-8")
    assert index.count('<data value="">–</data>') == 4 and index.count('<data value="0.125">12%</data>') == 4
    assert also("--topk", "3", "--keep_similar").keys() == {49, 0, 1}
    assert also("--features", "0,175,362") == {
        0: "1 (rank 3), 2 (rank 4)",
        175: "176 (rank 177), 362 (rank 363)",
        362: "175 (rank 176), 176 (rank 177)",
    }
    assert "note" not in capsys.readouterr().out


def test_as_published_takes_the_published_rows_and_frequencies(flags: list[str]) -> None:
    args = compute_dashboard.parse_arguments([*flags, "--as_published"])
    assert (args.rows, args.rope_original_context) == ("published", 16_384)
    assert compute_dashboard.parse_arguments([*flags, "--as_published", "--rows=stream"]).rows == "stream"


def test_the_sequences_peak_at_the_features_own_activation_also_at_the_ends_of_rows(
    flags: list[str], tmp_path: Path, tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path
) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    from transformer_lens_r1.shared.data import load_rows

    features = [362, 175, 49]
    chosen = ["--features", ",".join(map(str, features)), "--ignore_tokens", ""]
    compute_dashboard.main([*flags, *chosen, "--dtype", "float32"])
    rows = torch.tensor(load_rows(fixture_tokens).shuffle(seed=42)[:6]["tokens"])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    sae = SAE.load_from_disk(legacy_sae)
    with torch.no_grad():
        residual = model(rows, output_hidden_states=True).hidden_states[3]
        activations = sae.encode(residual)[..., features] * sae.W_dec[features].norm(dim=1)  # [rows, context, features]
    assert {path.name for path in (tmp_path / "pages").glob("feature_*")} == {f"feature_{f}.html" for f in features}
    places = []
    for feature, own in zip(features, activations.unbind(-1), strict=True):
        page = (tmp_path / "pages" / f"feature_{feature}.html").read_text(encoding="utf-8")
        first = next(iter(embedded_data(page)[str(feature)]["tokenData"].values()))["data"][0]
        assert [token["isBold"] for token in first].count(True) == 1
        bold = next(token for token in first if token["isBold"])
        row, place = divmod(int(own.argmax()), own.shape[1])
        assert bold["featAct"] == pytest.approx(own.max().item(), abs=1e-4)
        shown = own[row, max(0, place - 10) : place + 11]
        assert [token.get("featAct", 0.0) for token in first] == pytest.approx(shown.tolist(), abs=1e-4)
        assert [token["tokID"] for token in first] == rows[row, max(0, place - 10) : place + 11].tolist()
        places.append(place)
    assert any(place <= 10 or place >= rows.shape[1] - 10 for place in places)


def test_an_interrupted_run_continues_with_the_same_result(
    flags: list[str], tmp_path: Path, forward_passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*flags, "--topk", "2", "--minibatch_size_tokens", "2", "--dtype", "float32"]
    pages, work = tmp_path / "pages", tmp_path / "pages.partial"
    compute_dashboard.main(command)
    whole = {path.name: path.read_bytes() for path in pages.glob("*.html")}
    pages.rename(tmp_path / "first")
    forward_passes.clear()

    def interrupting(function: Callable, after: int) -> Callable:
        calls = iter(range(after))

        def call(*args: object, **options: object) -> object:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(activations_module, "SAVE_EVERY", 0)
        patch.setattr(activations_module, "residual_stream", interrupting(activations_module.residual_stream, 2))
        compute_dashboard.main(command)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pages_module, "write_feature_page", interrupting(pages_module.write_feature_page, 1))
        compute_dashboard.main(command)
    assert forward_passes == ["embed"] * 3  # 6 rows, 2 at a time, none twice
    assert not pages.exists()
    (finished,) = work.glob("feature_*.html")
    written = finished.stat().st_mtime_ns
    for other in (["--topk", "3"], ["--seed", "1"]):
        with pytest.raises(UserError, match=f"belongs to another run: .*{other[0]}.*; repeat its command"):
            compute_dashboard.main([*command, *other])
    assert finished.stat().st_mtime_ns == written
    compute_dashboard.main(command)
    assert forward_passes == ["embed"] * 3 and not work.exists()
    assert {path.name: path.read_bytes() for path in pages.glob("*.html")} == whole


def test_two_ranks_that_were_killed_continue_to_the_pages_of_one(
    flags: list[str], tmp_path: Path, repository: Path
) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    # As many rows in each batch as each rank has: the same products, so that no activation is rounded otherwise.
    command = [*flags, "--topk", "40", "--minibatch_size_tokens", "3", "--dtype", "float32"]
    pages, work = tmp_path / "pages", tmp_path / "pages.partial"
    compute_dashboard.main(command)
    one = content(pages)
    shutil.rmtree(pages)

    def on_two_ranks() -> subprocess.Popen[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = str(repository / "extraction" / "compute_dashboard.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen(
            [*launch, script, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    killed = on_two_ranks()
    while not list(work.glob("snippet_*")):
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.001)
    for rank in subprocess.run(["pgrep", "-P", str(killed.pid)], capture_output=True, text=True).stdout.split():
        os.kill(int(rank), signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not pages.exists()
    shapes = [np.load(work / f"activations_{rank}.npy", mmap_mode="r").shape for rank in (0, 1)]
    assert shapes == [(40, 3, 128)] * 2
    with pytest.raises(UserError, match="the number of ranks is 2 there and 1 here"):
        compute_dashboard.main(command)
    done = on_two_ranks()
    output, errors = done.communicate(timeout=200)
    assert done.returncode == 0, errors
    assert output.count("wrote the pages of 40 features") == 1
    assert "activations:   0%" not in errors, "the pass was complete"
    # Correlations are sums in another order, and are shown with two or three digits.
    assert content(pages) == one and not work.exists()


def test_a_feature_that_is_never_active_has_a_page_without_activations(
    flags: list[str], tmp_path: Path, make_sae: Callable[..., Path], scores_dir: Path
) -> None:
    folder = make_sae(d_in=256, d_sae=1024, context_size=128)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["b_enc"][0] = -1e6
    save_file(weights, folder / "sae_weights.safetensors")
    run = json.loads((scores_dir / "run.json").read_text())
    run["sae"]["weights_sha256"] = None  # of scores like these only the number of features is known
    (scores_dir / "run.json").write_text(json.dumps(run))
    compute_dashboard.main([*flags, "--sae_path", str(folder), "--features", "0,1", "--dtype", "float32"])
    silent, active = ((tmp_path / "pages" / f"feature_{i}.html").read_text(encoding="utf-8") for i in (0, 1))
    assert "not active anywhere" in silent and "not active anywhere" not in active
    assert embedded_data(silent)["0"].keys() == embedded_data(active)["1"].keys() - {"tokenData", "actsHistogramData"}
    assert "not active on this text" in (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")


def test_tokens_are_shown_as_people_write_them(tiny_llama: Path) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    bytelevel = AutoTokenizer.from_pretrained(tiny_llama)
    decode = pages_module.token_text(bytelevel)
    assert decode(bytelevel.convert_tokens_to_ids(["Ġthink", "Ċ", "<think>"])) == [" think", "↵", "<think>"]
    euro = bytelevel.encode("€", add_special_tokens=False)
    assert decode(euro) == ["\\xe2", "\\x82", "\\xac"] and pages_module.span_text(bytelevel, euro) == "€"
    assert decode(-1) == ""

    ids = bytelevel.encode("a€uro", add_special_tokens=False)
    for peak in range(1, 4):  # whichever byte of it, the character is shown, and whole
        assert tuple(pages_module.marked(bytelevel, ids, peak)) == ("a", "€", "uro")

    vocabulary = {"<unk>": 0, "<0xE2>": 1, "▁wait": 2, "hm": 3}
    model = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    sentencepiece = PreTrainedTokenizerFast(tokenizer_object=model)
    assert pages_module.token_text(sentencepiece)([1, 2, 3]) == ["\\xe2", " wait", "hm"]
    assert pages_module.span_text(sentencepiece, [2, 3]) == " waithm"


def test_mistakes_are_one_line_and_the_last_pages_stay(
    flags: list[str], make_sae: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "dashboards.json").touch()
    (pages / "index.html").write_text("earlier")
    mistakes = {
        "features are 0 to 1023": ["--features", "3,1024"],
        "no scores in": ["--scores_dir", str(tmp_path / "none")],
        "those of another SAE": ["--sae_path", str(make_sae(d_in=256, d_sae=1024))],
        "expected user/name": ["--hf_repo", "name"],
    }
    for message, extra in mistakes.items():
        with pytest.raises(UserError, match=message):
            compute_dashboard.main([*flags, *extra])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="beside --output_dir, where 0.0 GB are free"):
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
        compute_dashboard.main(flags)
    assert (pages / "index.html").read_text() == "earlier" and not (tmp_path / "pages.partial").exists()


def test_the_files_for_neuronpedia_say_what_the_pages_say(
    flags: list[str], tmp_path: Path, tiny_llama: Path, legacy_sae: Path
) -> None:
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

    folder = tmp_path / "neuronpedia"
    compute_dashboard.main([*flags, "--features", "362,49,5", "--dtype", "float32", "--neuronpedia", str(folder)])
    batch = json.loads((folder / "batch-0.json").read_text())
    assert {key: batch[key] for key in ("model_id", "layer", "sae_set")} == {
        "model_id": tiny_llama.name, "layer": 2, "sae_set": legacy_sae.name
    }  # fmt: skip
    assert json.loads((folder / "run_settings.json").read_text())["n_prompts_total"] == 6
    assert str(tmp_path) not in (folder / "run_settings.json").read_text()
    assert NeuronpediaDashboardBatch(**batch).to_dict() == batch  # SAEDashboard reads it back
    for one in batch["features"]:
        name = str(one["feature_index"])
        page = embedded_data((tmp_path / "pages" / f"feature_{name}.html").read_text(encoding="utf-8"))[name]
        sequences = [sequence for group in page.get("tokenData", {}).values() for sequence in group["data"]]
        assert [activation["tokens"] for activation in one["activations"]] == [
            [token["tok"] for token in sequence] for sequence in sequences
        ]
        # The first 20 are around the highest activations, in their order.
        peaks = [activation["values"][activation["qualifying_token_index"]] for activation in one["activations"]]
        assert len(peaks) > 20 and peaks[:20] == sorted(peaks[:20], reverse=True)
        assert peaks[0] == max(value for activation in one["activations"] for value in activation["values"])
    assert [one["feature_index"] for one in batch["features"]] == [49, 5, 362]


def test_a_folder_with_other_files_is_not_taken_for_an_earlier_export(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match="--neuronpedia"):
        compute_dashboard.main([*flags, "--neuronpedia", str(tmp_path / "mine")])
