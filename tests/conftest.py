"""What all tests share: the fixture files, the scripts as modules, tiny checkpoints, and the real small model."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

# Nothing in the tests may reach for the Hub; this must be said before the libraries read it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "tests" / "fixtures"


# Files that start engines or whole pipelines: minutes each, which would be left over at the end on one core.
LONG = (
    "test_vllm_gpu_paths.py", "test_vllm_compiled.py", "test_vllm_parallel.py", "test_vllm_sae.py",
    "test_gpu_report.py", "test_quickstart.py", "test_serve.py", "test_controls.py", "test_evaluate.py",
    "test_compute_score.py", "test_diffing_runs.py", "test_falsify_features.py",
)  # fmt: skip
HAS_VLLM = importlib.util.find_spec("vllm") is not None
WITHOUT_VLLM = "needs vLLM, which is not installed here"


def pytest_sessionstart() -> None:
    """In CI a Linux machine has vLLM: without it most of the evaluation would pass untested."""
    if os.environ.get("CI") == "true" and sys.platform == "linux" and not HAS_VLLM:
        raise pytest.UsageError("vLLM is not installed, and CI=true: on Linux bash setup.sh installs it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, in the order of LONG; what needs vLLM is skipped if there is none (macOS)."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        if not HAS_VLLM and item.get_closest_marker("needs_vllm"):
            item.add_marker(pytest.mark.skip(reason=WITHOUT_VLLM))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for the tests that a missing vLLM left out."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if count := sum(WITHOUT_VLLM in reason for reason in skipped):
        terminalreporter.line(f"{count} tests that need vLLM were skipped: it is not installed here")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Files that tests read: a model, an SAE in the layout of SAELens 5.5.2, text, tokens and expected scores."""
    return FIXTURES


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """A checkpoint of a small trained Llama: 4 layers, width 256, 327 tokens."""
    return FIXTURES / "tiny-llama"


@pytest.fixture(scope="session")
def legacy_sae() -> Path:
    """An SAE as SAELens 5.5.2 saved it: 1,024 features at blocks.2.hook_resid_post of `tiny_llama`."""
    return FIXTURES / "legacy-sae"


@pytest.fixture(scope="session")
def fixture_tokens() -> Path:
    """A data set folder with the column `tokens`."""
    return FIXTURES / "tokens"


@pytest.fixture(scope="session")
def fixture_text() -> Path:
    """A data set folder with the column `text`."""
    return FIXTURES / "text"


@contextmanager
def _script_loader() -> Iterator[Callable[[str], ModuleType]]:
    folders: list[str] = []
    before = set(sys.modules)

    with pytest.MonkeyPatch.context() as monkeypatch:

        def load(path: str) -> ModuleType:
            script = REPOSITORY / path
            folders.append(str(script.parent))
            monkeypatch.syspath_prepend(str(script.parent))
            spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
            assert spec is not None and spec.loader is not None, f"no script {script}"
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module

        yield load
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if any(file.startswith(folder + os.sep) for folder in folders):
            del sys.modules[name]


@pytest.fixture
def load_script() -> Iterator[Callable[[str], ModuleType]]:
    """A function that imports a script by its path from the root, with its folder first on the path, as python does.

    What the script imports from its own folder is forgotten afterwards: two folders may use the same module name.
    """
    with _script_loader() as load:
        yield load


@pytest.fixture(scope="module")
def load_script_for_module() -> Iterator[Callable[[str], ModuleType]]:
    """`load_script` for what all tests of a module share."""
    with _script_loader() as load:
        yield load


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real small language model as a checkpoint, made once and kept between runs of the tests."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "reasoning-features-tests"
    folder = cache / "smollm2"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "smollm2.lock"):  # tests run in several processes
        subprocess.run(
            [sys.executable, str(REPOSITORY / "quickstart" / "make_checkpoint.py"), "--output_dir", str(folder)],
            check=True,
        )
    return folder


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """The system's Chromium."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert executable, "no Chromium here: apt-get install chromium (bash tests/run.sh does it for root)"
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_offline(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """A function that opens a page from the disk, without a network.

    A request outside the page's folder, an error on the console, or planted text that ran as a script (it would set
    ``window.planted``) fails the test.
    """
    faults: list[str] = []
    contexts = []

    def open_(path: Path, *, width: int = 1280, scheme: str = "light") -> "Page":
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        allowed = ("data:", f"{path.parent.as_uri()}/")
        page.on("request", lambda r: None if r.url.startswith(allowed) else faults.append(f"request {r.url}"))
        page.on("requestfailed", lambda request: faults.append(f"failed {request.url}"))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        assert all(page.evaluate("window.planted === undefined") for page in context.pages), (
            "planted text ran as script"
        )
        context.close()
    assert not faults
