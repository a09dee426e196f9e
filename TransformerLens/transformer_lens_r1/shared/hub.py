"""The Hugging Face Hub: who may push, pushing a finished folder, and its failures as one line without credentials."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.errors import UserError, first_line
from transformer_lens_r1.shared.files import PROVENANCE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HIDDEN = "<hidden>"
ADVICE = {
    401: "the Hub does not accept the token (401): log in with hf auth login, or set HF_TOKEN to one that is valid",
    403: "the token is not allowed to do this (403): use one with write access to that repository",
    404: "the Hub has no such repository, file or revision, or does not show it to this token (404)",
    413: "the Hub finds a file too large (413)",
    429: "the Hub limits how often it may be asked (429): wait some minutes",
}


def hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises if the Hub, the network or the credentials fail."""
    from huggingface_hub.errors import HTTPError

    # `HTTPError` is that of whichever HTTP library the client is built on; failed uploads of large files are
    # RuntimeErrors, unusable answers and repository names ValueErrors.
    return (HTTPError, OSError, ValueError, RuntimeError)


def hub_fault(error: BaseException) -> str:
    """What went wrong between here and the Hub, in one line without a credential.

    The client wraps errors in others: the one that carries the Hub's answer says most.
    """
    from huggingface_hub.errors import GatedRepoError, HTTPError, LocalTokenNotFoundError

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, GatedRepoError):
            return "it is gated: accept its terms on its Hub page, then log in with hf auth login, or set HF_TOKEN"
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            known = "the Hub has a fault of its own ({}): try again later" if status >= 500 else "the Hub answers {}"
            return ADVICE.get(status, known.format(status))
    for cause in chain:
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no Hub token: log in with hf auth login, or set HF_TOKEN"
        if isinstance(cause, HTTPError | ConnectionError | TimeoutError) and type(cause) is not ConnectionError:
            return f"the connection to the Hub failed ({type(cause).__name__}: {redact(first_line(cause))})"
    return redact(first_line(error))


def redact(text: str) -> str:
    """`text` without Hub tokens, passwords in addresses and the signatures of addresses that are signed."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token:
        text = text.replace(token, HIDDEN)
    text = re.sub(r"\bhf_\w{6,}", HIDDEN, text)
    text = re.sub(r"(?<=://)[^/@\s]+@", f"{HIDDEN}@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\")]+", rf"\1?{HIDDEN}", text)


class _Redacting(logging.Filter):
    """The client logs the addresses that it asks again, and those of uploads carry a signature."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


def use_token(token: str | None) -> None:
    """Have every client of this process use `token` (None: what it would use anyway), and none of them log one.

    Raises:
        UserError: `token` is nothing that can be sent.
    """
    if token is not None:
        token = token.strip()
        # What the HTTP library says of a header that it cannot send holds the header.
        if not re.fullmatch(r"[!-~]+", token):
            raise UserError("--hf_token is empty or holds characters that no token has; copy it from the Hub again")
        if os.environ.get("HF_TOKEN") != token:
            warning = "other users of this machine can read --hf_token in the list of processes; HF_TOKEN they cannot"
            print(f"warning: {warning}", file=sys.stderr)
        os.environ["HF_TOKEN"] = token
    import huggingface_hub.utils

    logger = huggingface_hub.utils.logging.get_logger("huggingface_hub")
    for handler in logger.handlers:
        if not any(isinstance(known, _Redacting) for known in handler.filters):
            handler.addFilter(_Redacting())


def cached_commit(name_or_path: str, file: str, *, revision: str | None = None) -> str | None:
    """The commit that a model's `file`, just read, came from; None for a local folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name_or_path).exists():
        return None
    path = try_to_load_from_cache(name_or_path, file, revision=revision)
    match = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path).as_posix()) if isinstance(path, str) else None
    return match[1] if match else None


def check_hub_access(args: argparse.Namespace, *, repo_id: str | None = None, repo_type: str = "dataset") -> None:
    """Make sure, before any work is done, that the Hub will take the push that ``args`` ask for.

    Args:
        args: with ``hf_user``, ``hf_token`` and ``private``; nothing is checked if neither ``hf_user`` nor
            ``repo_id`` names an owner.
        repo_id: the repository as owner/name, if it is known already.
        repo_type: ``dataset``, ``model`` or ``space``.

    Raises:
        UserError: no valid token, a token that cannot write there, a data set of other origin under that name, or a
            public repository if a private one is wanted.
    """
    owner = repo_id.split("/")[0] if repo_id is not None else args.hf_user
    if owner is None:
        return
    use_token(args.hf_token)
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        account = api.whoami()
    except hub_errors() as error:
        raise UserError(
            f"the Hub does not know who you are, so nothing can be pushed to {owner}: {hub_fault(error)}; "
            "or write to a folder with --output_dir instead"
        ) from error
    _check_rights(account, owner, repo_id)
    if repo_id is not None:
        _check_repository(api, repo_id, repo_type=repo_type, private=args.private)


def _check_rights(account: dict[str, Any], owner: str, repo_id: str | None) -> None:
    organisations = {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
    names = [account["name"], *organisations]
    if owner not in names:
        raise UserError(f"cannot push to {owner}: this token may push for {', '.join(names)} only")
    token = (account.get("auth") or {}).get("accessToken") or {}
    scopes = (token.get("fineGrained") or {}).get("scoped")
    may_write = token.get("role") != "read" and organisations.get(owner) != "read"
    if scopes is not None:
        covered = [scope for scope in scopes if (scope.get("entity") or {}).get("name") in (owner, repo_id)]
        may_write &= any("repo.write" in scope.get("permissions", ()) for scope in covered)
    if not may_write:
        raise UserError(f"this token may read but not write repositories of {owner}; make one that may write")


def _check_repository(api: HfApi, repo_id: str, *, repo_type: str, private: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    except hub_errors() as error:
        raise UserError(f"the push to {repo_id} would fail: {hub_fault(error)}") from error
    if private and info.private is False:
        raise UserError(f"{repo_id} exists and is public, but --private is given; make it private on the Hub first")
    names = {file.rfilename for file in info.siblings or ()}
    if repo_type == "dataset" and PROVENANCE not in names and any(name.endswith(".parquet") for name in names):
        raise UserError(
            f"the data set {repo_id} exists and was not made by these scripts ({PROVENANCE} is missing), and the push "
            "would replace it; name another with --hf_repo"
        )


def push_folder(folder: Path, repo_id: str, *, repo_type: str, token: str | None, private: bool) -> str:
    """Upload a finished folder to a Hub repository, made if there is none; returns the repository's id.

    A Space is a static one. Parquet files and feature pages of an earlier push that the folder does not hold are
    deleted: `load_dataset` would read the ones, and nothing would link to the others.
    One commit at the end makes all of it visible at once; after a failed upload the repository is as it was.

    Raises:
        UserError: the upload failed; the folder is kept and named.
    """
    use_token(token)
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        sdk = "static" if repo_type == "space" else None
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        stale = ["*.parquet", "feature_*.html"]
        api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type, delete_patterns=stale)
    except hub_errors() as error:
        raise UserError(f"the push to {repo_id} failed: {hub_fault(error)}; the result lies in {folder}") from error
    return repo_id
