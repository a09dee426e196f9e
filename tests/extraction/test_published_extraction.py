"""What --as_published and the options that it is made of do in the scripts of extraction/."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compute_dashboard
import compute_score
import prepare_openthoughts_subset as subset_script
import pytest
import torch
from brute_force import reason_scores, sets_of_positions
from datasets import Dataset
from openthoughts_rows import openthoughts_row
from playwright.sync_api import Page
from reasonscore.results import read_scores

from transformer_lens_r1 import format_openthoughts
from transformer_lens_r1.shared.data import load_rows
from transformer_lens_r1.shared.errors import UserError

N_ROWS = 6

SIZES = {"math": 30, "code": 20, "puzzle": 3, "biology": 12, "chemistry": 12, "physics": 12}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the schema of OpenThoughts-114k, its domains mixed; every other starter code has no characters."""
    domains = [domain for turn in range(30) for domain, size in SIZES.items() if turn < size]
    rows = [
        openthoughts_row(index, domain, test_cases="{}", starter_code=["", None][index % 4 // 2])
        for index, domain in enumerate(domains)
    ]
    folder = tmp_path_factory.mktemp("openthoughts")
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


def make_subset(source: Path, folder: Path, *options: str) -> Dataset:
    subset_script.main(["--dataset_path", str(source), "--output_dir", str(folder), *options])
    return load_rows(folder)


@pytest.mark.parametrize("chosen", ["physics,code,puzzle", None])
def test_the_published_draw_goes_domain_by_domain_and_keeps_all_columns(
    source: Path, tmp_path: Path, chosen: str | None
) -> None:
    domains = chosen.split(",") if chosen else ["code", "math", "puzzle", "biology", "chemistry", "physics"]
    rows = load_rows(source).filter(lambda row: row["domain"] in domains)
    share, expected = 32 // len(domains), []
    for domain in domains:
        of_domain = rows.filter(lambda row, domain=domain: row["domain"] == domain).shuffle(seed=42)
        expected += of_domain["problem"][:share]
    expected += [problem for problem in rows["problem"][:] if problem not in expected][: 32 - len(expected)]

    options = ["--draw", "published", "--num_samples", "32", *(["--domains", chosen] if chosen else [])]
    subset = make_subset(source, tmp_path / "subset", *options)
    assert subset["problem"][:] == expected and len(expected) == 32
    assert subset.column_names == [*rows.column_names, "text"]
    by_problem = {row["problem"]: row for row in rows}
    assert all(row["text"] == format_openthoughts(by_problem[row["problem"]]) for row in subset)
    assert {**by_problem[expected[0]], "text": None} == {**subset[0], "text": None}
    provenance = json.loads((tmp_path / "subset" / "provenance.json").read_text())
    assert provenance["draw"] == "published" and ("--domains physics,code,puzzle" in provenance["command"]) == bool(
        chosen
    )


def test_domains_restrict_the_stratified_draw_too(source: Path, tmp_path: Path) -> None:
    subset = make_subset(source, tmp_path / "subset", "--domains", "math,biology", "--num_samples", "20")
    assert subset["domain"][:].count("math") == subset["domain"][:].count("biology") == 10
    assert subset.column_names == ["text", "domain"]


@pytest.mark.parametrize("value", ["math,cooking", "math,math", ""])
def test_domains_that_do_not_exist_or_come_twice_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        make_subset(source, tmp_path / "subset", "--domains", value)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_as_published_changes_draw_and_text_and_each_can_be_set_back(source: Path, tmp_path: Path) -> None:
    rows = load_rows(source)

    def questions(*options: str) -> dict[int, str]:
        """What stands between the two marks, by the number in it, of problems in code."""
        subset = make_subset(source, tmp_path / str(len(options)), "--num_samples", "89", *options)
        texts = [row["text"] for row in subset if row["domain"] == "code"]
        found = [text.split("<｜User｜>")[1].split("<｜Assistant｜>")[0] for text in texts]
        return {int(question.split("problem ")[1]): question for question in found}

    code = {number: row for number, row in enumerate(rows) if row["domain"] == "code"}
    assert {row["starter_code"] for row in code.values()} == {"", None}
    newline, nothing = questions("--as_published"), questions("--as_published", "--empty_starter_code", "nothing")
    assert newline.keys() == nothing.keys() == code.keys()
    for number, row in code.items():
        assert nothing[number].endswith(f"problem {number}")
        assert newline[number] == nothing[number] + ("\n" if row["starter_code"] == "" else "")
    assert "problem" in load_rows(tmp_path / "1").column_names  # the published draw
    command = json.loads((tmp_path / "3" / "provenance.json").read_text())["command"]
    assert "--as_published" in command and "--empty_starter_code nothing" in command


def code_row(**changes: Any) -> dict[str, Any]:
    row = {"problem": "p", "deepseek_reasoning": "r", "deepseek_solution": "s", "domain": "code", "test_cases": "{}"}
    return {**row, **changes}


@pytest.mark.parametrize(("starter", "added"), [(None, ""), ("", "\n"), ("def f():", "\ndef f():")])
def test_the_newline_of_an_empty_starter_code(starter: str | None, added: str) -> None:
    without = format_openthoughts(code_row(starter_code=None))
    text = format_openthoughts(code_row(starter_code=starter), empty_starter_code="newline")
    assert text == without.replace("p<｜Assistant｜>", f"p{added}<｜Assistant｜>")


@pytest.fixture(scope="module")
def token_rows(fixture_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of more rows than are read, in which an id that the SAE was trained without comes often."""
    tokens = torch.tensor(load_rows(fixture_tokens)[: 3 * N_ROWS]["tokens"])
    tokens[:, 3::16] = 1
    folder = tmp_path_factory.mktemp("tokens")
    Dataset.from_dict({"tokens": tokens.tolist()}).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def rows(token_rows: Path) -> torch.Tensor:
    """Its first rows, in their order."""
    return torch.tensor(load_rows(token_rows)[:N_ROWS]["tokens"])


@pytest.fixture(scope="module")
def activations(rows: torch.Tensor, tiny_llama: Path, legacy_sae: Path) -> torch.Tensor:
    """What transformers and SAELens make of them, in units of unit decoder directions, [rows, context, features]."""
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    model, sae = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), SAE.load_from_disk(legacy_sae)
    with torch.no_grad():
        return sae.encode(model(rows, output_hidden_states=True).hidden_states[3]) * sae.W_dec.norm(dim=1)


@pytest.fixture
def flags(tiny_llama: Path, legacy_sae: Path, token_rows: Path) -> list[str]:
    return [
        *("--model_path", str(tiny_llama), "--sae_path", str(legacy_sae), "--dataset_path", str(token_rows)),
        *("--column_name", "tokens", "--device", "cpu", "--dtype", "float32"),
    ]


def published_positions(row: list[int], sequences: list[tuple[int, ...]], left: int, right: int) -> set[int]:
    """The positions of a word: where more windows have begun than ended, each begin and each end counting once."""
    found = set()
    for sequence in sequences:
        starts = [place for place in range(len(row)) if tuple(row[place : place + len(sequence)]) == sequence]
        matched = {place + offset for place in starts for offset in range(len(sequence))}
        begins, ends = {max(place - left, 0) for place in matched}, {place + right + 1 for place in matched}
        found |= {p for p in range(len(row)) if sum(b <= p for b in begins) > sum(e <= p for e in ends)}
    return found


@pytest.mark.parametrize("window", [(0, 0), (3, 1)])
def test_scores_as_published_are_those_of_the_published_defaults(
    flags: list[str],
    rows: torch.Tensor,
    tiny_llama: Path,
    make_sae: Callable[..., Path],
    tmp_path: Path,
    window: tuple[int, int],
) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    groups: dict[str, list[tuple[int, ...]]] = {}
    for spelling in json.loads(compute_score.VOCABULARY.read_text()):
        ids = tuple(tokenizer.encode(spelling, add_special_tokens=False))
        groups.setdefault(spelling.lstrip().lower(), []).append(ids)
    rows, wait = rows.clone(), groups["wait"][0]
    for row, start in enumerate((0, 1, 2)):  # the start of the row cuts the windows off; later ones follow
        for place in (start, 20, 60):
            rows[row, place : place + len(wait)] = torch.tensor(wait)
    Dataset.from_dict({"tokens": rows.tolist()}).to_parquet(tmp_path / "rows" / "train.parquet")
    folder = make_sae(d_in=256)
    options = ["--dataset_path", str(tmp_path / "rows"), "--sae_path", str(folder), "--as_published", "--first_rows"]
    if window != (0, 0):  # what is published without a shell script
        options += ["--expand_range", ",".join(map(str, window))]
    compute_score.main([*flags, *options, "--n_bootstrap", "0", "--output_dir", str(tmp_path / "scores")])

    model, sae = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), SAE.load_from_disk(folder)
    with torch.no_grad():
        values = sae.encode(model(rows, output_hidden_states=True).hidden_states[3]) * sae.W_dec.norm(dim=1)
    words = [
        {(b, p) for b, row in enumerate(rows.tolist()) for p in published_positions(row, sequences, *window)}
        for sequences in groups.values()
    ]
    positive = set().union(*words)
    others = {(b, p) for b in range(len(rows)) for p in range(rows.shape[1])} - positive
    # no id is ignored, and the entropy counts as it is
    expected = torch.tensor(reason_scores(values, [*words, positive, others], 1.0))
    scores = torch.load(tmp_path / "scores" / "feature_scores.pt", weights_only=True)
    assert (scores - expected).abs().max() <= 1e-6 * expected.abs().max() + 1e-7
    right = sets_of_positions(rows.tolist(), groups, *window, [])
    assert ([*words, positive, others] == right) == (window == (0, 0))
    arguments = json.loads((tmp_path / "scores" / "run.json").read_text())["arguments"]
    assert (arguments["alpha"], arguments["expand_range"], arguments["ignore_tokens"]) == (1.0, [*window], [])
    assert arguments["windows"] == "published" and arguments["first_rows"]


def test_what_is_given_counts_more_than_as_published() -> None:
    needed = ["--model_path", "m", "--sae_path", "s", "--dataset_path", "d", "--output_dir", "o"]
    given = ["--as_published", "--alpha", "0.7", "--expand_range", "1,2", "--ignore_tokens", "5"]
    score = compute_score.parse_arguments([*needed, *given])
    assert (score.alpha, score.expand_range, score.ignore_tokens) == (0.7, (1, 2), [5])
    given = ["--scores_dir", "x", "--as_published", "--n_quantiles", "3"]
    shown = compute_dashboard.parse_arguments([*needed, *given])
    assert (shown.n_quantiles, shown.tokens_around, shown.n_samples, shown.topk) == (3, 5, 5000, 100)
    assert shown.first_rows and shown.ignore_tokens == []
    assert not compute_dashboard.parse_arguments([*needed, *given, "--no-first_rows"]).first_rows


def tokens_of(page: Path, feature: int) -> dict[str, list[list[dict[str, Any]]]]:
    """The sequences on a page, by the title of their group."""
    data = json.loads(re.search(r"return (\{.*\});", page.read_text(encoding="utf-8")).group(1))["DASHBOARD_DATA"]
    return {title: group["data"] for title, group in data[str(feature)]["tokenData"].items()}


def test_scores_alone_give_pages_as_published_with_the_maximum_on_the_text_shown(
    flags: list[str],
    rows: torch.Tensor,
    activations: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_offline: Callable[..., Page],
) -> None:
    # A feature whose largest activation is on an id that the SAE was trained without, and one of the others.
    highest = activations.flatten(0, 1).max(dim=0)
    on_ignored = torch.isin(rows.flatten()[highest.indices], torch.tensor([0, 1])) & (highest.values > 0)
    features = [int(on_ignored.nonzero()[0]), int((~on_ignored & (highest.values > 0)).nonzero()[0])]
    score = torch.zeros(1024)
    score[features] = torch.tensor([0.5, 0.25])
    torch.save(score, tmp_path / "feature_scores.pt")
    pages = tmp_path / "pages"
    command = [*flags, "--scores_dir", str(tmp_path / "feature_scores.pt"), "--output_dir", str(pages), "--topk", "2"]
    command += ["--as_published", "--n_samples", str(N_ROWS)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("feature_pages.pages.write_index", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        compute_dashboard.main(command)
    with pytest.raises(UserError, match="--n_quantiles is 10 there and 5 here"):
        compute_dashboard.main([*command, "--n_quantiles", "5"])
    compute_dashboard.main(command)  # all pages were complete: only the index was missing

    index = (pages / "index.html").read_text(encoding="utf-8")
    assert "max activation on the text shown" in index and "without statistics" in index
    assert not any(missing in index for missing in ("active on", "entropy", "strongest word"))
    for feature in features:
        page = pages / f"feature_{feature}.html"
        text, own = page.read_text(encoding="utf-8"), activations[..., feature]
        assert "max activation on the text shown" in text and "entropy" not in text.split("<main")[0]
        steering = re.search(rf"sae_feature_idx={feature},sae_max_activation=([\d.]+)", text)
        assert float(steering[1]) == pytest.approx(own.max().item(), abs=1e-4)
        shown_in_index = re.findall(r'<data value="([\d.]+)">', index)
        assert any(float(value) == pytest.approx(own.max().item(), abs=1e-4) for value in shown_in_index)
        groups = tokens_of(page, feature)
        first, *quantiles = groups.values()
        row, place = divmod(int(own.argmax()), own.shape[1])
        assert [token["tokID"] for token in first[0]] == rows[row, max(0, place - 5) : place + 6].tolist()
        # Ten intervals of equal width from 0 to the maximum; those without an activation have no group.
        filled = {min(9, int(10 * value / own.max())) for value in own[own > 0].tolist()}
        assert len(quantiles) == len(filled) > 1
    page = open_offline(pages / "index.html")
    links = page.locator("tbody tr:visible td:nth-child(2) a")
    assert links.all_inner_texts() == [str(feature) for feature in features]
    page.locator("th", has_text="ReasonScore").locator("button").click()
    page.locator("th", has_text="ReasonScore").locator("button").click()
    assert links.all_inner_texts() == [str(feature) for feature in reversed(features)]
    page.fill("#search", str(features[0]))
    assert str(features[0]) in links.all_inner_texts() and page.locator("#count").inner_text().endswith("of 2")
    page = open_offline(pages / f"feature_{features[0]}.html")
    assert page.locator("dl data").count() == 3 and page.locator("#column-0 .seq:visible").count() > 10

    record = json.loads((pages / "dashboards.json").read_text())
    assert record["ignored_ids"] == [] and record["first_rows"] and record["max_activation_of"] == "the text shown"
    assert (record["n_quantiles"], record["tokens_around"]) == (10, 5)


def test_published_chunks_are_put_together_by_number_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = torch.rand(1024).tensor_split(12)
    for chunk, part in enumerate(parts):
        torch.save(part, tmp_path / f"feature_scores_{chunk}.pt")
    saved = read_scores(tmp_path)
    assert torch.equal(saved.statistics["score"], torch.cat(parts)) and saved.alone
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: the 12 chunks") and "normalised by itself" in warning
    (tmp_path / "feature_scores_10.pt").unlink()
    with pytest.raises(UserError, match="lacks feature_scores_10.pt"):
        read_scores(tmp_path)
    torch.save(torch.ones(3), tmp_path / "feature_scores.pt")  # put together already
    assert read_scores(tmp_path).statistics["score"].tolist() == [1, 1, 1]


def test_what_is_no_file_of_scores_is_refused_in_one_line(flags: list[str], tmp_path: Path) -> None:
    file = tmp_path / "feature_scores.pt"
    command = [*flags, "--scores_dir", str(file), "--output_dir", str(tmp_path / "pages")]
    for content, message in ((torch.ones(2, 2), "one number for each feature"), (torch.ones(7), "the 7 scores in")):
        torch.save(content, file)
        with pytest.raises(UserError, match=message):
            compute_dashboard.main(command)
    file.write_text("scores")
    with pytest.raises(UserError, match="torch cannot read it"):
        compute_dashboard.main(command)
    (tmp_path / "run.json").write_text("{}")  # a damaged folder of compute_score.py, not scores alone
    with pytest.raises(UserError, match="feature_stats.safetensors is missing"):
        read_scores(tmp_path)
