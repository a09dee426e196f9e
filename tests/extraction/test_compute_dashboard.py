"""compute_dashboard.py: pages for the features asked for, which open without a network, and an index of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from transformer_lens_r1.errors import UserError
from transformer_lens_r1.files import hash_file

REMOTE = re.compile(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?https?:""")


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/compute_dashboard.py")


@pytest.fixture
def scores_dir(legacy_sae: Path, tmp_path: Path) -> Path:
    """Scores of the fixture's SAE, written by hand: feature i scores -i, except that 49 is the best."""
    folder = tmp_path / "scores"
    folder.mkdir()
    score = -torch.arange(1024.0)
    score[49] = 5
    rest = {name: torch.full((1024,), 0.25) for name in ("max_activation", "firing_frequency", "entropy")}
    statistics = {"score": score, "word_means": torch.rand(1024, 2), **rest}
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


def embedded_data(page: str) -> dict:
    return json.loads(re.search(r"return (\{.*\});", page).group(1))["DASHBOARD_DATA"]


def test_the_best_features_get_pages_that_need_no_network(script: ModuleType, flags: list[str], tmp_path: Path) -> None:
    script.main([*flags, "--topk", "2", "--dtype", "float32"])
    folder = tmp_path / "pages"
    assert {path.name for path in folder.glob("*.html")} == {"index.html", "feature_49.html", "feature_0.html"}
    for path in folder.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert not REMOTE.search(page), path
        for linked in re.findall(r'<(?:script|link|a)[^>]+(?:src|href)="([^"#]+)"', page):
            assert linked == "data:," or (folder / linked).is_file(), linked
    assert (folder / "assets" / "plotly.min.js").stat().st_size > 1_000_000

    index = (folder / "index.html").read_text(encoding="utf-8")
    assert index.index("feature_49.html") < index.index("feature_0.html")
    assert "<mark>" in index and "<b>hmm" not in index
    data = embedded_data((folder / "feature_49.html").read_text(encoding="utf-8"))["49"]
    assert data["actsHistogramData"]["0"]["y"] and data["logitsTableData"]["0"]["posLogits"]


def test_the_sequences_peak_at_the_features_own_activation(
    script: ModuleType, flags: list[str], tmp_path: Path, tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path
) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    from transformer_lens_r1.data import load_rows

    script.main([*flags, "--features", "362,49", "--dtype", "float32", "--ignore_tokens", ""])
    assert {path.name for path in (tmp_path / "pages").glob("feature_*")} == {"feature_362.html", "feature_49.html"}
    page = (tmp_path / "pages" / "feature_362.html").read_text(encoding="utf-8")
    sequences = [group["data"] for group in embedded_data(page)["362"]["tokenData"].values()]
    shown = max(token.get("featAct", 0) for group in sequences for sequence in group for token in sequence)

    rows = torch.tensor(load_rows(fixture_tokens).shuffle(seed=42)[:6]["tokens"])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    sae = SAE.load_from_disk(legacy_sae)
    with torch.no_grad():
        residual = model(rows, output_hidden_states=True).hidden_states[3]
        activations = sae.encode(residual)[..., 362] * sae.W_dec[362].norm()
    # SAEDashboard looks for peaks where there is room to show the text around them.
    assert shown == pytest.approx(activations[:, 11:-10].max().item(), abs=2e-3)


def test_the_pass_ends_at_the_hook_and_an_unknown_hash_refuses_nothing(
    script: ModuleType, flags: list[str], scores_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformer_lens_r1

    ran: list[str] = []
    load = transformer_lens_r1.load_model

    def watched(*args: object, **options: object) -> object:
        model = load(*args, **options)
        for name in ("embed", "ln_final", "unembed"):
            getattr(model, name).register_forward_hook(lambda *_, name=name: ran.append(name))
        return model

    monkeypatch.setattr(transformer_lens_r1, "load_model", watched)
    run = json.loads((scores_dir / "run.json").read_text())
    (scores_dir / "run.json").write_text(json.dumps({**run, "sae": {"weights_sha256": None}}))
    script.main([*flags, "--topk", "1", "--dtype", "float32"])
    assert (tmp_path / "pages" / "feature_49.html").is_file()
    assert set(ran) == {"embed"}


def test_text_cannot_become_markup(load_script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    from sae_dashboard.components import SequenceData, SequenceGroupData, SequenceMultiGroupData
    from sae_dashboard.feature_data import FeatureData

    class Tokenizer:
        def decode(self, tokens: list[int], **_: object) -> str:
            return "".join(["</script><script>alert(1)</script>", "<think>", "\n"][token] for token in tokens)

    pages = load_script("extraction/dashboard_pages.py")
    sequence = SequenceData(token_ids=[0, 1, 2], feat_acts=[0.0, 2.0, 1.0], token_logits=[0.0] * 3)
    group = SequenceGroupData("TOP", [sequence])
    data = FeatureData(sequence_data=SequenceMultiGroupData([group]))
    snippet = pages.best_snippet(data, Tokenizer())
    assert "<script>" not in snippet and "<mark>&lt;think&gt;</mark>↵" in snippet

    from sae_dashboard.components_config import Column, SequencesConfig
    from sae_dashboard.layout import SaeVisLayoutConfig

    facts = pages.FeatureFacts(3, 1, 0.1, 2.0, 0.5, 0.9, "<i>wait")
    layout = SaeVisLayoutConfig(columns=[Column(SequencesConfig())], height=100)
    pages.write_feature_page(tmp_path, facts, data, layout, pages.token_text(Tokenizer()))
    page = (tmp_path / "feature_3.html").read_text(encoding="utf-8")
    assert "alert(1)" in page and "<script>alert" not in page and "<i>wait" not in page
    assert "${tok}</code>" not in page and "<code>${escapeHtml(tok)}</code>" in page


def test_mistakes_are_one_line_and_the_last_pages_stay(
    script: ModuleType, flags: list[str], scores_dir: Path, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    pages = tmp_path / "pages"
    (pages / "assets").mkdir(parents=True)
    (pages / "assets" / "d3_selection.js").touch()
    (pages / "index.html").write_text("earlier")
    mistakes = {
        "features are 0 to 1023": ["--features", "3,1024"],
        "no folder of scores": ["--scores_dir", str(tmp_path / "none")],
        "those of another SAE": ["--sae_path", str(make_sae(d_in=256, d_sae=1024))],
        "has no column": ["--column_name", "txet"],
        "is empty": ["--features", ""],
    }
    for message, extra in mistakes.items():
        with pytest.raises(UserError, match=message):
            script.main([*flags, *extra])
    (scores_dir / "run.json").unlink()
    with pytest.raises(UserError, match="run.json is missing"):
        script.main(flags)
    assert (pages / "index.html").read_text() == "earlier"
