"""Controls of a grid: which features are matched, what each run changes, and what its results file says of it."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from engines import (
    PROMPTS,
    assert_agree,
    assert_all_differ,
    generations,
    loglikelihoods,
    read_run,
    start_hf,
    start_vllm,
    write_local_task,
)
from grid.controls import control_points
from grid.points import BASELINE, GridPoint, layers, read_grid, read_scores
from report.controls import WORD_RATE, place_features
from report.reasoning_words import WordCounter
from report.rows import summarize
from report.runs import read_runs
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_sae.cli import main
from lm_eval_sae.engines.model_files import load_tokenizer
from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import read_steering
from lm_eval_sae.steering.intervention import make_intervention
from lm_eval_sae.steering.requests import intervention_key, request_arguments
from transformer_lens_r1.shared.errors import UserError as SharedUserError
from transformer_lens_r1.shared.matching import match_features

D_SAE = 64  # of `make_sae`
REASONING = [3, 41]


@pytest.fixture(scope="module")
def statistics() -> dict[str, torch.Tensor]:
    """Of features of which a quarter never fires; REASONING have the best scores."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.rand(D_SAE, generator=generator) * 0.1
    frequency[::4] = 0
    frequency[REASONING] = torch.tensor([0.02, 0.07])
    maximum = torch.rand(D_SAE, generator=generator) * 9 + 1
    score = torch.randn(D_SAE, generator=generator)
    score[REASONING] = torch.tensor([9.0, 8.0])
    return {"score": score, "firing_frequency": frequency, "max_activation": maximum * (frequency > 0)}


@pytest.fixture(scope="module")
def scores(statistics: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    save_file(statistics, folder / "feature_stats.safetensors")
    return folder


@pytest.fixture(scope="module")
def sae(make_sae: Callable[..., Path]) -> Path:
    return make_sae("jumprelu")


@pytest.fixture
def words(repository: Path) -> Path:
    return repository / "extraction" / "reason_tokens.json"


@pytest.fixture
def controls(tiny_llama: Path, words: Path) -> Callable[..., list[GridPoint]]:
    def make(points: list[GridPoint], *kinds: str, n_matched: int = 3) -> list[GridPoint]:
        return control_points(
            points, kinds=kinds, n_matched=n_matched, word_bias=[2, 5.5], words=words,
            load_tokenizer=lambda: load_tokenizer(str(tiny_llama), {}),
        )  # fmt: skip

    return make


def grid(scores: Path, sae: Path, *, strengths: tuple[float, ...] = (1, 2), **arguments: str) -> list[GridPoint]:
    shared = {"sae_path": str(sae), **arguments}
    return read_scores(scores, topk=2, features=REASONING, strengths=strengths, shared=shared)


def test_matched_features_are_the_nearest_that_are_free(statistics: dict[str, torch.Tensor]) -> None:
    score, frequency, maximum = (values.tolist() for values in statistics.values())
    firing = [i for i in range(D_SAE) if frequency[i] > 0]
    middle = sorted(score[i] for i in firing)[(len(firing) - 1) // 2]
    free = [i for i in firing if score[i] <= middle]
    expected: dict[int, list[int]] = {feature: [] for feature in REASONING}

    def distance(one: int, other: int) -> float:
        return sum(abs(math.log(values[one] / values[other])) for values in (frequency, maximum))

    for _ in range(4):
        for feature in REASONING:
            expected[feature].append(min(free, key=lambda other: distance(feature, other)))
            free.remove(expected[feature][-1])
    assert match_features(*statistics.values(), features=REASONING, n_matched=4) == expected
    with pytest.raises(SharedUserError, match="40 matched controls .* need 80 features .* the scores have 2[0-9]"):
        match_features(*statistics.values(), features=REASONING, n_matched=40)


@pytest.mark.parametrize("settings", [{}, {"sae_mode": "add"}, {"sae_units": "raw"}, {"sae_mode": "published"}])
def test_a_matched_control_makes_a_change_of_the_same_norm(
    settings: dict[str, str], scores: Path, sae: Path, controls: Callable[..., list[GridPoint]]
) -> None:
    points = grid(scores, sae, **settings)
    found = controls(points, "matched")
    assert len(found) == 3 * len(points) == len({point.name for point in found})
    by_name = {(p.steering.features[0].feature_idx, p.steering.features[0].strength): p for p in points}
    used: dict[int, set[int]] = {}
    for point in found:
        (control,), of = point.steering.features, point.steering.control_of
        (feature,) = by_name[of].steering.features
        used.setdefault(of.feature_idx, set()).add(control.feature_idx)
        assert point.name == by_name[of].name.replace("sae-", f"sae-{control.feature_idx}-for-")
        assert (control.mode, control.units) == (feature.mode, feature.units)
        # At an x where the feature is silent, so that v is all that changes it.
        changes = [make_intervention([one]).change(-1e3 * one.row.encoder).norm() for one in (control, feature)]
        assert float(changes[0]) == pytest.approx(float(changes[1]), rel=1e-4)
    assert [len(controls) for controls in used.values()] == [3, 3] and not used[3] & used[41]


def test_an_ablated_feature_is_set_to_0_once(scores: Path, sae: Path, controls: Callable[..., list[GridPoint]]) -> None:
    found = controls(grid(scores, sae, sae_mode="add"), "ablate")
    assert [point.name for point in found] == ["sae-3-x0", "sae-41-x0"]
    for point in found:
        (feature,) = point.steering.features
        assert (feature.mode, feature.value) == ("set", 0)
    assert controls(grid(scores, sae, strengths=(0, 1)), "ablate") == [], "the grid has them"


def test_matched_controls_need_the_scores(sae: Path, tmp_path: Path, controls: Callable[..., list[GridPoint]]) -> None:
    feature = {"sae_path": str(sae), "sae_max_activation": 5, "strengths": [1], "features": [3]}
    (tmp_path / "grid.json").write_text(json.dumps(feature))
    points = read_grid(tmp_path / "grid.json", shared={})
    assert [point.name for point in controls(points, "ablate", "words")] == ["sae-3-x0", "words-b2", "words-b5.5"]
    with pytest.raises(UserError, match="matched controls of feature 3 need its scores folder: give --scores_dir"):
        controls(points, "matched")


def test_words_are_biased_where_one_token_spells_them(
    tiny_llama: Path, words: Path, controls: Callable[..., list[GridPoint]]
) -> None:
    (point, stronger) = controls([], "words")
    assert point.label == "words +2" and layers([point]) == {}
    record = stronger.steering.record()
    assert record["features"] == [] and record["word_bias"]["bias"] == 5.5
    # Looked up the other way round: what each token of the model is as text.
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    spellings = {spelling.strip() for spelling in json.loads(words.read_text())}
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    expected = {i for i, text in texts.items() if text.removeprefix(" ") in spellings}
    assert {i for ids in record["word_bias"]["tokens"].values() for i in ids} == expected and len(expected) == 8
    assert record["word_bias"]["tokens"]["let me"] == [] and record["word_bias"]["tokens"]["but"] != []
    assert request_arguments(point.steering) == {} and intervention_key(request_arguments(point.steering)) == ""


def test_biased_completions_are_those_of_biased_logits(
    tiny_llama: Path, controls: Callable[..., list[GridPoint]]
) -> None:
    """Compared with a loop that takes the largest of logits + bias, token by token."""
    (point, _) = controls([], "words")
    hf = start_hf(tiny_llama)
    plain = hf.generate_until(generations(PROMPTS, until=[]), disable_tqdm=True)
    log_likelihoods = hf.loglikelihood(loglikelihoods(PROMPTS), disable_tqdm=True)
    hf.set_intervention(point.steering)
    found = hf.generate_until(generations(PROMPTS, until=[]), disable_tqdm=True)
    assert hf.loglikelihood(loglikelihoods(PROMPTS), disable_tqdm=True) == log_likelihoods, "generated text alone"

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    bias = torch.zeros(model.config.vocab_size)
    bias[list(point.steering.word_bias.of_tokens)] = 2.0
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids[0].tolist()
        start = len(ids)
        while len(ids) < start + 12 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids.append(int((model(torch.tensor([ids])).logits[0, -1] + bias).argmax()))
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    assert found == expected and found != plain


@pytest.mark.needs_vllm
def test_vllm_gives_the_same_texts_under_every_control(
    tiny_llama: Path, scores: Path, sae: Path, controls: Callable[..., list[GridPoint]]
) -> None:
    hf, vllm = start_hf(tiny_llama), start_vllm(tiny_llama, layers={1: 1})
    try:
        matched, *_, words = controls(grid(scores, sae, strengths=(2,)), "matched", "words")
        of_matched, of_words, plain = (
            assert_agree(vllm, hf, steering) for steering in (matched.steering, words.steering, None)
        )
        assert of_words == plain, "the bias is on generated text alone"
        assert_all_differ([of_matched, plain])
        texts = []
        for steering in (None, words.steering):
            vllm.set_intervention(steering)
            texts.append(vllm.generate_until(generations(PROMPTS), disable_tqdm=True))
        assert texts[0] != texts[1]
        assert vllm.get_model_info()["sae"]["steered_positions"] is None
    finally:
        vllm.close()


def test_a_grid_with_controls_from_the_command_line_to_the_report(
    tiny_llama: Path, scores: Path, sae: Path, tmp_path: Path, controls: Callable[..., list[GridPoint]]
) -> None:
    """Every run by itself leaves the record of its point, and the report finds it by that alone."""
    problems = [{"problem": f"Wait, what is {i} + {i}?", "solution": "", "answer": str(2 * i)} for i in range(10)]
    name = write_local_task("math-500", tmp_path, problems)
    features = grid(scores, sae, strengths=(2,))
    points = [BASELINE, *features, *controls(features, "ablate", "matched", "words", n_matched=2)]
    assert len(points) == 1 + 2 + 2 + 4 + 2
    for point in points:
        arguments = {"pretrained": str(tiny_llama), "dtype": "float32", **point.arguments}
        main([
            "run", "--model", "hf", "--tasks", name, "--include_path", str(tmp_path), "--device", "cpu",
            "--batch_size", "10", "--gen_kwargs", "max_gen_toks=24", "--log_samples",
            "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()),
            "--output_path", str(tmp_path / "runs" / (point.name or "plain")),
        ])  # fmt: skip
        if point.steering is not None:
            record = read_run(tmp_path / "runs" / point.name)[0]["config"]["sae"]
            assert (record.pop("steered_positions") is None) == (point.steering.word_bias is not None)
            assert record == point.steering.record()

    def rate(point: GridPoint) -> float:
        _, samples = read_run(tmp_path / "runs" / (point.name or "plain"))
        texts = [sample["resps"][0][0] for sample in samples]
        count = sum(word in words.words for text in texts for word in re.findall(r"\w+", text.lower()))
        return count / sum(sample["completion_tokens"] for sample in samples)

    words = WordCounter([spelling for word in ("bu", "but", "maybe") for spelling in (word, word.capitalize())])
    rows = summarize(read_runs([tmp_path / "runs"], words=words), words=words.words, n_resamples=100)
    placed = [one for one in place_features(rows) if one.effect == WORD_RATE]
    changes = {point.name: 1000 * (rate(point) - rate(BASELINE)) for point in points}
    assert len(placed) == len(features) and len(set(changes.values())) > 5
    for one, point in zip(placed, features, strict=True):
        index = point.steering.features[0].feature_idx
        matched = [change for name, change in changes.items() if f"-for-{index}-" in name]
        assert one.value == pytest.approx(changes[point.name])
        assert sorted(one.matched) == pytest.approx(sorted(matched)) and len(matched) == 2
        assert one.ablated == pytest.approx(changes[f"sae-{index}-x0"])
        assert one.words == pytest.approx({2.0: changes["words-b2"], 5.5: changes["words-b5.5"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sae_word_bias": 2}, "sae_words is missing"),
        ({"sae_words": "words.json"}, "sae_word_bias is missing"),
        ({"sae_word_bias": 2, "sae_words": "words.json", "sae_path": "sae"}, "both sae_word_bias and sae_path are"),
        ({"sae_word_bias": 2, "sae_words": "nowhere.json"}, "no file at sae_words=nowhere.json"),
        ({"sae_word_bias": 2, "sae_words": "words.json"}, "no word of words.json is a token of the model by itself"),
    ],
)
def test_mistakes_with_words_are_one_line(
    arguments: dict[str, object], message: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.json").write_text('["let me", "nevertheless"]')
    with pytest.raises(UserError, match=message):
        read_steering(arguments, lambda: load_tokenizer(str(tiny_llama), {}))


def test_a_control_of_nothing_is_refused(scores: Path, sae: Path) -> None:
    arguments = grid(scores, sae)[0].arguments
    with pytest.raises(UserError, match="sae_control_of is 46379, expected feature and strength, e.g. 46379x2"):
        read_steering({**arguments, "sae_control_of": 46379})


def test_controls_are_asked_for_by_flags(
    evaluate: ModuleType, scores: Path, sae: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_sae = [f"{flag},sae_path={sae}" if flag.startswith("pretrained") else flag for flag in flags]
    command = [*with_sae, "--scores_dir", str(scores), "--features", "3,41", "--strengths", "2", "--n_matched", "1"]
    command += ["--controls", "ablate,matched,words", "--word_bias", "2,5", "--output_dir", str(tmp_path), "--plan"]
    evaluate.main(command)
    names = [
        line.split()[0].removeprefix("tiny-llama-quickstart_problems")
        for line in capsys.readouterr().out.splitlines()[1:]
    ]
    matched = [name for name in names if "-for-" in name]
    assert [name.partition("-for-")[2] for name in matched] == ["3-x2", "41-x2"]
    assert names == ["", "-sae-3-x2", "-sae-41-x2", "-sae-3-x0", "-sae-41-x0", *matched, "-words-b2", "-words-b5"]
