"""A Hub that fails, refuses or breaks off: one line, nothing lost, nothing told; real clients, a server on loopback."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import HubClient, assert_one_line, contents, local_rows, stored_rows
from hub_server import NARROW_TOKEN, READ_TOKEN, SIGNATURE, TOKEN, HubServer

MERGE = "training/datasets/merge_datasets.py"
SUBSET = "extraction/prepare_openthoughts_subset.py"
CUT = None


@pytest.mark.parametrize(
    ("pattern", "status", "expected"),
    [
        ("POST /api/repos/create", 403, "not allowed to do this (403)"),
        ("PUT /lfs/", CUT, "the connection to the Hub failed"),
    ],
)
def test_a_failed_push_is_one_line_keeps_the_data_and_can_be_done_alone(
    hub: HubServer, client: HubClient, tmp_path: Path, parts: list[Path], pattern: str, status: int, expected: str
) -> None:
    merged = tmp_path / "merged"
    command = [*parts, "--output_dir", merged, "--hf_repo", "researcher/merged"]
    fault = hub.fail(pattern, status)
    failed = client.run(MERGE, *command, token=TOKEN)
    assert fault.seen > 0
    assert_one_line(failed, expected, f"the result lies in {merged}", "--push_only")
    rows, before = local_rows(merged), contents(merged)
    assert len(rows) == 20
    assert not any(path.endswith(".parquet") for files in hub.repos.values() for path in files)

    hub.faults.clear()
    pushed = client.run(MERGE, *command, "--push_only", token=TOKEN)
    assert pushed.status == 0, pushed.err
    assert stored_rows(hub.repos["datasets/researcher/merged"]) == rows
    assert contents(merged) == before


def test_a_passing_failure_is_tried_again(hub: HubServer, client: HubClient, tmp_path: Path, parts: list[Path]) -> None:
    faults = [hub.fail("POST .*/objects/batch", 429, times=2), hub.fail("PUT /lfs/", CUT, times=2)]
    flags = ["--output_dir", tmp_path / "merged", "--hf_user", "laboratory"]
    done = client.run(MERGE, *parts, *flags, token=NARROW_TOKEN)  # which may write for this owner only
    assert done.status == 0, done.err
    assert [fault.seen for fault in faults] == [2, 2]
    files = hub.repos["datasets/laboratory/part-0-part-1"]
    assert stored_rows(files) == local_rows(tmp_path / "merged")
    card = files["README.md"].decode()
    assert "CC-BY-4.0" in card and "someone/part-1" in card and str(tmp_path) not in card


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
    assert len(stored_rows(hub.repos["datasets/researcher/part-0-part-1"])) == 20
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
        (["--output_dir", "nowhere", "--push_only"], TOKEN, "--push_only needs to know where"),
    ],
)
def test_what_the_hub_would_refuse_is_found_before_the_work(
    hub: HubServer, client: HubClient, parts: list[Path], flags: list[str], token: str | None, expected: str
) -> None:
    hub.add("datasets/researcher/theirs", {"data.parquet": b"theirs"})
    hub.add("datasets/researcher/public", {"provenance.json": b"{}"})
    before = {name: dict(files) for name, files in hub.repos.items()}
    # the parts are not data sets: reading them at all would end in another error
    done = client.run(MERGE, parts[0] / "no", parts[1] / "no", *flags, token=token)
    assert_one_line(done, expected)
    assert done.err.count("\n") == 1
    assert "two words" not in done.err and (token is None or token not in done.err)
    assert hub.repos == before
    assert not any(request.startswith(("POST", "PUT")) for request in hub.requests)


@pytest.mark.parametrize(
    ("name", "pattern", "status", "expected"),
    [
        ("part-a", "GET /api/datasets/someone", 500, "a fault of its own (500)"),
        ("part-b", "GET /lfs/", CUT, "the connection to the Hub failed"),
    ],
)
def test_a_failed_download_is_one_line_and_the_next_one_works(
    hub: HubServer, client: HubClient, tmp_path: Path, parts: list[Path], name: str, pattern: str, status: int,
    expected: str,
) -> None:  # fmt: skip
    # names and rows of their own, because what was downloaded once is taken from the cache
    rows = [[ord(name[-1]) + place for place in range(8)]] * 200
    pq.write_table(pa.table({"tokens": rows}), parts[0] / "train-00000-of-00001.parquet")
    hub.add(f"datasets/someone/{name}", {path.name: path.read_bytes() for path in parts[0].iterdir()})
    command = [f"someone/{name}", parts[1], "--output_dir", tmp_path / "merged"]
    fault = hub.fail(pattern, status)
    failed = client.run(MERGE, *command, token=TOKEN)
    assert fault.seen > 0
    assert_one_line(failed, f"someone/{name}", expected)
    assert not (tmp_path / "merged").exists()
    hub.faults.clear()
    worked = client.run(MERGE, *command, token=TOKEN)
    assert worked.status == 0, worked.err
    assert sorted(local_rows(tmp_path / "merged")) == sorted(rows + local_rows(parts[1]))


def test_no_credential_is_left_anywhere(
    hub: HubServer, client: HubClient, home: Path, tmp_path: Path, parts: list[Path], openthoughts: Path
) -> None:
    """Planted tokens, signed addresses included, are in no output and no file, however the runs end."""
    said = []
    for place, (pattern, status) in enumerate(
        [(None, 0), ("GET /api/whoami-v2", 401), ("PUT /lfs/", CUT), ("POST .*/commit/", 403)]
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
        "import sys; from pathlib import Path; from transformer_lens_r1.shared.hub import push_folder\n"
        "push_folder(Path(sys.argv[2]), 'researcher/defect', repo_type=None, token=sys.argv[1], private='yes', no=1)"
    )
    said.append(client.evaluate(defect, TOKEN, parts[0]))
    assert "Traceback" in said[-1].err
    for done in said:
        for secret in (TOKEN, SIGNATURE):
            assert secret not in done.out + done.err
    files = [path for folder in (home, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert TOKEN.encode() not in content and SIGNATURE.encode() not in content, path
        assert TOKEN not in path.name
    published = [body for files in hub.repos.values() for body in files.values()]
    assert published and not any(TOKEN.encode() in body for body in published)
