"""serve.sh as a client and as a person in a browser meet it: one start of the server for all tests."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import serve
import torch
from engines import generations, start_hf
from feature_pages.pages import FeatureFacts, Snippet, _fill, write_assets, write_index
from safetensors.torch import save_file

from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import read_feature_setting, steering_of
from transformer_lens_r1.shared.errors import UserError as ScriptError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.needs_vllm
KEY = "the-key-of-the-tests"
PLANTED = '<img src="x" onerror="window.planted=1">'
QUESTION, TOKENS = "Why?", 40
MAXIMA = torch.arange(64) / 100  # feature 0 never fired

Arguments = dict[str, Any]
INTERVENTIONS: dict[str, Arguments | None] = {
    "nothing": None,
    "set": {"sae_feature_idx": 41, "sae_strength": 0.7},
    "set to less": {"sae_feature_idx": 41, "sae_strength": -1, "sae_mode": "set"},
    "clamp": {"sae_feature_idx": 3, "sae_strength": 8, "sae_mode": "clamp"},
    "several": {"sae_feature_idx": [9, 50], "sae_strength": [3, -0.6], "sae_mode": ["add", "set"]},
    "own maximum": {"sae_feature_idx": 41, "sae_strength": 1, "sae_max_activation": 1.5},
}


def facts(feature: int, rank: int) -> FeatureFacts:
    maximum = float(MAXIMA[feature])
    return FeatureFacts(feature, rank, 1 / rank, None, maximum, 0.1, 0.5, (("wait", 1.0),))


@pytest.fixture(scope="module")
def inputs(
    tiny_llama: Path, make_sae: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What serve.sh reads. The model says an HTML element where it would say "$"; so does a snippet."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny_llama, folder / "model")
    tokenizer = folder / "model" / "tokenizer.json"
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary[PLANTED.replace(" ", "Ġ")] = vocabulary.pop("$")
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    (folder / "scores").mkdir()
    save_file({"max_activation": MAXIMA}, folder / "scores" / "feature_stats.safetensors")
    pages = folder / "dashboards"
    pages.mkdir()
    write_assets(pages)
    rows = [(facts(41, 1), Snippet("one ", PLANTED, " two")), (facts(7, 2), Snippet("a needle ", "here", ""))]
    write_index(pages, rows, title="features", about="")
    for one, _ in rows:
        page = _fill("feature.html", facts=one, before=None, after=None, dead=True, panels="", section="")
        (pages / one.page).write_text(page, encoding="utf-8")
    sae = make_sae("jumprelu")
    (pages / "dashboards.json").write_text(json.dumps({"hook_name": "blocks.1.hook_resid_post"}))
    return {"MODEL": folder / "model", "SAE_PATH": sae, "SCORES_DIR": folder / "scores", "DASHBOARDS": pages}


def flags(inputs: dict[str, Path]) -> dict[str, str]:
    names = {"--model_path": "MODEL", "--sae_path": "SAE_PATH", "--scores_dir": "SCORES_DIR"}
    return {flag: str(inputs[name]) for flag, name in {**names, "--dashboards_dir": "DASHBOARDS"}.items()}


@pytest.fixture(scope="module")
def port(inputs: dict[str, Path], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server that runs, and takes requests with KEY."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    settings = {name: str(path) for name, path in inputs.items()}
    settings |= {"PORT": str(port), "PYTHON": sys.executable, "VLLM_API_KEY": KEY}
    command = ["bash", str(repository / "evaluation" / "serve.sh"), "--dtype", "float32", "--max-model-len", "512"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(2**27)],
            env={**os.environ, **settings}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            if status(port, "/health") == 200:
                break
            time.sleep(0.5)
        yield port
        assert KEY not in log.read_text()
    finally:
        server.terminate()
        server.wait(60)


def exchange(
    port: int, path: str, body: Any = None, headers: dict[str, str] | None = None, *, method: str | None = None
) -> tuple[int, str, http.client.HTTPMessage]:
    """A request as it stands: nothing in its path or headers is tidied up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **(headers or {})}
    content = None if body is None else json.dumps(body)
    connection.request(method or ("GET" if body is None else "POST"), path, content, given)
    response = connection.getresponse()
    return response.status, response.read().decode(), response.headers


def status(port: int, *request: Any, **options: Any) -> int:
    try:
        return exchange(port, *request, **options)[0]
    except ConnectionRefusedError:
        return 0


def chat(port: int, steering: Arguments | None, **more: Any) -> tuple[int, str]:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": TOKENS, **more}
    return exchange(port, "/v1/chat/completions", body | ({"vllm_xargs": steering} if steering else {}))[:2]


def said(answer: tuple[int, str]) -> str:
    assert answer[0] == 200, answer
    return json.loads(answer[1])["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def in_transformers(inputs: dict[str, Path]) -> dict[str, str]:
    """What transformers answers to the question under each intervention, one after another."""
    hf = start_hf(inputs["MODEL"])
    prompt = hf.apply_chat_template([{"role": "user", "content": QUESTION}])
    texts = {}
    for name, arguments in INTERVENTIONS.items():
        steering = None
        if arguments:
            count = len(arguments["sae_feature_idx"]) if name == "several" else 1
            settings = []
            for i in range(count):
                own = {key: value[i] if isinstance(value, list) else value for key, value in arguments.items()}
                own.setdefault("sae_max_activation", float(MAXIMA[own["sae_feature_idx"]]))
                settings.append(read_feature_setting({"sae_path": str(inputs["SAE_PATH"]), **own}))
            steering = steering_of(settings, where="the test")
        hf.set_intervention(steering)
        (texts[name],) = hf.generate_until(generations([prompt], max_gen_toks=TOKENS, until=[]), disable_tqdm=True)
    assert len(set(texts.values())) == len(texts)
    return texts


def test_requests_at_once_each_get_their_own_intervention(port: int, in_transformers: dict[str, str]) -> None:
    names = [name for name in INTERVENTIONS for _ in range(2)]
    with ThreadPoolExecutor(len(names)) as threads:
        texts = list(threads.map(lambda name: said(chat(port, INTERVENTIONS[name])), names))
    for name, text in zip(names, texts, strict=True):
        assert text.rstrip("\ufffd") == in_transformers[name].rstrip("\ufffd"), name


BAD = {
    "feature 64 is not in the SAE, which has features 0 to 63": {"sae_feature_idx": 64, "sae_strength": 1},
    "feature 0 never fired": {"sae_feature_idx": 0, "sae_strength": 1},
    "sae_strength is missing": {"sae_feature_idx": 3},
    "sae_feature_idx is 'x', expected a whole number": {"sae_feature_idx": "x", "sae_strength": 1},
    "sae_strength is '2', expected a number": {"sae_feature_idx": 3, "sae_strength": "2"},
    "1e+300, expected a number that float32 holds": {"sae_feature_idx": 3, "sae_strength": 1e300},
    "sae_strength × sae_max_activation is 9": {
        "sae_feature_idx": 3,
        "sae_strength": 3e38,
        "sae_max_activation": 3e38,
    },
    "did you mean 'set'": {"sae_feature_idx": 3, "sae_strength": 1, "sae_mode": "sett"},
    "a request cannot give 'sae_path'": {"sae_path": "/", "sae_feature_idx": 3, "sae_strength": 1},
    "unknown entry 'feature_idx'; did you mean 'sae_feature_idx'": {"feature_idx": 3, "sae_strength": 1},
    "5 features at layer 1, where this engine can change 4": {"sae_feature_idx": [1, 2, 3, 4, 5], "sae_strength": 1},
    "feature 3 of": {"sae_feature_idx": [3, 3], "sae_strength": 1},
}


def test_a_bad_request_gets_400_and_a_sentence_and_the_server_lives(port: int, in_transformers: dict[str, str]) -> None:
    endpoints = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hm"}]},
        "/v1/completions": {"prompt": "Hm"},
    }
    for sentence, steering in BAD.items():
        for endpoint, question in endpoints.items():
            for stream in (False, True):
                code, text, _ = exchange(port, endpoint, {**question, "stream": stream, "vllm_xargs": steering})
                assert code == 400 and sentence in json.loads(text)["error"]["message"], (sentence, code, text)
    good = {"sae_feature_idx": 3, "sae_strength": 1}
    assert chat(port, {**good, "sae_strength": {"a": 1}})[0] == 400  # vLLM's own refusal
    for more, sentence in (
        ({"use_beam_search": True, "n": 2}, "beam search is not steered"),
        (good, "in vllm_xargs only"),
    ):
        code, text = chat(port, good, **more)
        assert code == 400 and sentence in text
    assert chat(port, {**good, "sae_strength": 1e37})[0] == 200  # beyond what the model can use, for itself alone
    assert said(chat(port, None)) == in_transformers["nothing"].rstrip("\ufffd")


def test_other_sites_and_those_without_the_key_are_refused(port: int) -> None:
    for headers, code in (
        ({"Authorization": "Bearer another"}, 401), ({"Authorization": ""}, 401),
        ({"Origin": "http://elsewhere.example"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": f"elsewhere.example:{port}"}, 403),
        ({"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}"}, 400),  # its own; the body is wrong
    ):  # fmt: skip
        got, _, answered = exchange(port, "/v1/chat/completions", {"messages": 3}, headers)
        assert got == code, headers
        assert not [name for name in answered if name.lower().startswith("access-control")]
    asked_before = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    assert status(port, "/v1/chat/completions", None, asked_before, method="OPTIONS") == 403
    assert status(port, "/v1/models", None, {"Authorization": ""}) == 401


def test_no_other_file_and_no_unchecked_path_is_served(port: int) -> None:
    for path in (
        "/dashboards/../scores/feature_stats.safetensors", "/dashboards/%2e%2e/scores/feature_stats.safetensors",
        "/dashboards/..%2fscores/feature_stats.safetensors", "//etc/passwd", "/dashboards//etc/passwd",
    ):  # fmt: skip
        assert status(port, path) == 404, path
    assert status(port, "/dashboards/index.html") == 200
    assert status(port, "/dashboards/index.html", None, method="PUT") == 405
    for path in ("/v1/responses", "/v1/chat/completions/batch", "/inference/v1/generate", "/invocations", "/tokenize"):
        assert status(port, path, {}) in (404, 405), path


def test_a_mistake_ends_it_before_anything_starts(
    inputs: dict[str, Path], make_sae: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr("vllm.entrypoints.launchers.api_server.entry.run_server", lambda args: pytest.fail("started"))
    other_width = make_sae("standard", d_in=64)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for change, more, sentence in (
            ({"--host": "0.0.0.0"}, [], "set VLLM_API_KEY"),
            ({"--port": str(taken.getsockname()[1])}, [], "give another --port"),
            ({"--port": "70000"}, [], "give another --port"),
            ({"--sae_path": str(tmp_path)}, [], "holds no cfg.json"),
            ({"--sae_path": str(other_width)}, [], "d_in 64 but"),
            ({"--sae_id": "x"}, [], "which SAE"),
            ({"--scores_dir": str(tmp_path)}, [], "holds no feature_stats.safetensors"),
            ({"--dashboards_dir": str(tmp_path)}, [], "holds no dashboards.json"),
            ({"--model_path": str(tmp_path)}, [], "no model at"),
            ({}, ["--enable-prefix-caching"], "--enable-prefix-caching cannot be given"),
            ({}, ["--api-key", "x"], "set VLLM_API_KEY in the environment"),
            ({}, ["--model", "x"], "give --model_path"),
        ):
            argv = [word for pair in {**flags(inputs), "--port": "0", **change}.items() for word in pair]
            with pytest.raises((UserError, ScriptError), match=re.escape(sentence)):
                serve.main(argv + more)


def test_the_script_says_in_one_line_what_is_wrong(inputs: dict[str, Path], repository: Path) -> None:
    settings = {name: str(path) for name, path in inputs.items()} | {"PORT": "0", "PYTHON": sys.executable}
    env = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"} | settings
    for flags, change, sentence in (
        ([], {"HOST": "0.0.0.0"}, "set VLLM_API_KEY"),
        (["--max-model-lengthy", "5"], {}, "--max-model-lengthy"),
    ):
        command = ["bash", str(repository / "evaluation" / "serve.sh"), *flags]
        ended = subprocess.run(command, env=env | change, capture_output=True, text=True)
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert ended.returncode == 2 and sentence in ended.stderr.splitlines()[-1] and len(errors) == 1
        assert "usage" not in ended.stderr and "Traceback" not in ended.stderr


@pytest.fixture
def open_page(browser: "Browser", port: int) -> "Iterator[Callable[..., Page]]":
    """A function that opens a page of the server; another host, an error, or planted text that ran fails the test."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": 400, "height": 900})

    def open_(path: str) -> "Page":
        page = context.new_page()
        own = (f"http://127.0.0.1:{port}/", "data:")
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}{path}")
        return page

    yield open_
    for page in context.pages:
        assert page.evaluate("window.planted === undefined") and page.locator("img").count() == 0
    context.close()
    assert not faults


def ask(page: "Page") -> list[Arguments]:
    """Asks, waits for all answers, and returns what was requested."""
    requests: list[Arguments] = []
    page.on("request", lambda request: requests.append(request.post_data_json) if request.method == "POST" else None)
    page.locator("#question").fill(QUESTION)
    page.locator("#max_tokens").fill(str(TOKENS))
    page.locator("#send").click()
    page.locator("#send:not([disabled])").wait_for()
    return requests


def test_the_page_asks_all_columns_the_same(open_page: "Callable[..., Page]", in_transformers: dict[str, str]) -> None:
    page = open_page("/?feature=41&strength=0.7")
    columns, statuses, answers = page.locator("section"), page.locator(".status"), page.locator(".answer")
    ask(page)
    assert all("API key" in text for text in statuses.all_inner_texts())
    page.locator("#key").fill(KEY)
    plain, steered = ask(page)
    assert "vllm_xargs" not in plain
    assert (
        steered.pop("vllm_xargs") == {"sae_feature_idx": 41, "sae_strength": 0.7, "sae_mode": "set"}
        and steered == plain
    )
    for place, name in enumerate(("nothing", "set")):
        text = in_transformers[name]
        assert answers.nth(place).evaluate("e => e.textContent").rstrip("\ufffd") == text.rstrip("\ufffd")
        words = re.findall(r"(?<!\w)Alternatively(?!\w)", text)
        assert answers.nth(place).locator("mark", has_text=re.compile("^Alternatively$")).count() == len(words)
        assert statuses.nth(place).inner_text().startswith(f"{TOKENS} tokens · ")
    assert PLANTED in answers.first.inner_text() and answers.first.locator("mark").count() > 3

    columns.nth(1).locator(".strength").fill("-1")
    assert columns.nth(1).locator(".value").inner_text() == "-1 × 0.41 = -0.41"
    assert ask(page)[1]["vllm_xargs"]["sae_strength"] == -1
    assert answers.nth(1).evaluate("e => e.textContent").rstrip("\ufffd") == in_transformers["set to less"].rstrip(
        "\ufffd"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_features_are_found_by_their_text_or_their_index(open_page: "Callable[..., Page]") -> None:
    page = open_page("/")
    page.locator("#key").evaluate(f"input => (input.value = '{KEY}')")
    column = page.locator("section").nth(1)
    assert PLANTED in column.locator("summary").inner_text()
    column.locator("summary").click()
    column.locator("input[type=search]").fill("NEEDLE")
    column.locator("li button").click()
    assert column.locator(".value").inner_text() == "2 × 0.07 = 0.14"
    with page.context.expect_page() as opened:
        column.locator(".page").click()
    opened.value.locator("#try").click()
    assert opened.value.locator("summary").inner_text().startswith("feature 7 ") and "?feature=7&" in opened.value.url
    column.locator("summary").click()
    column.locator("input[type=search]").fill("0")
    column.locator("input[type=search]").press("Enter")
    ask(page)
    assert "feature 0 never fired" in column.locator(".status").inner_text()
    assert f"{TOKENS} tokens" in page.locator(".status").first.inner_text()


def test_without_scores_the_page_asks_for_the_maximal_activation(open_page: "Callable[..., Page]", port: int) -> None:
    page = open_page("/")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/sae/info") as response:
        info = {**json.load(response), "max_activations": None}
    page.route("**/sae/info", lambda route: route.fulfill(json=info))
    page.goto(f"http://127.0.0.1:{port}/?feature=12&strength=1.5&mode=add")
    page.locator("#key").evaluate(f"input => (input.value = '{KEY}')")
    page.locator(".maximum").fill("3")
    assert page.locator(".value").inner_text() == "1.5 × 3 = 4.5"
    expected = {"sae_feature_idx": 12, "sae_strength": 1.5, "sae_mode": "add", "sae_max_activation": 3}
    assert ask(page)[1]["vllm_xargs"] == expected


def test_stop_ends_all_answers(open_page: "Callable[..., Page]") -> None:
    page = open_page("/?feature=41")
    page.locator("#key").evaluate(f"input => (input.value = '{KEY}')")
    page.locator("#question").fill(QUESTION)
    page.locator("#max_tokens").fill("480")
    page.locator("#send").click()
    page.locator(".answer mark").first.wait_for()
    page.locator("#stop").click()
    page.locator("#send:not([disabled])").wait_for()
    assert all(text.endswith("stopped") for text in page.locator(".status").all_inner_texts())
