"""Publish a trained SAE on the Hugging Face Hub, for SAELens to find by repository and id.

    python training/upload_sae.py --sae_path sae_runs/r1-distill-llama-8b-ctx-1024-l1-5 --hf_repo NAME/REPOSITORY \\
        --sae_id blocks.19.hook_resid_post --private

Afterwards: `SAE.from_pretrained("NAME/REPOSITORY", "blocks.19.hook_resid_post")`. Pushed are the SAE, by SAELens' own
uploader, training_summary.json beside it, and a model card; of local paths in them, only the last component.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_lens_r1.shared.arguments import ArgumentParser
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import display_name

CONFIG, WEIGHTS, SPARSITY, SUMMARY, RUN_CONFIG, CARD = (
    "cfg.json",
    "sae_weights.safetensors",
    "sparsity.safetensors",
    "training_summary.json",
    "runner_cfg.json",
    "README.md",
)
PATH_KEYS = (
    "model_name", "dataset_path", "checkpoint_path", "cached_activations_path", "from_pretrained_path", "output_path",
    "resume_from_checkpoint",
)  # fmt: skip
# What the card says of the run: keys of runner_cfg.json, or of cfg.json.
CARD_KEYS = (
    "training_tokens", "train_batch_size_tokens", "lr", "lr_scheduler_name", "lr_warm_up_steps", "lr_decay_steps",
    "adam_beta1", "adam_beta2", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "decoder_init_norm",
    "decoder_init", "rope_original_context",
    "normalize_activations", "apply_b_dec_to_input", "exclude_special_tokens", "seqpos_slice", "prepend_bos", "seed",
    "dtype",
)  # fmt: skip


def read_sae_folder(path: Path) -> dict[str, Any]:
    """The configuration of the SAE in a folder, once its weights are known to have the shapes that it names.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the configuration.
    """
    from safetensors import SafetensorError, safe_open

    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{path} is not an SAE folder: {name} is missing; expected what train_sae.py writes")
    try:
        config = read_json(path / CONFIG)
        expected = {"W_enc": [config["d_in"], config["d_sae"]], "W_dec": [config["d_sae"], config["d_in"]]}
        with safe_open(path / WEIGHTS, framework="np") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in expected}
    except (ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{CONFIG} or {WEIGHTS} in {path} is damaged: {error}") from error
    if shapes != expected:
        raise UserError(
            f"{path / WEIGHTS} has {shapes}, but {CONFIG} asks for {expected}; the files belong to different SAEs"
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file beside the SAE; nothing if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def metadata(config: Mapping[str, Any], key: str) -> Any:
    """A field that SAELens 6 keeps under `metadata` and SAELens 5 kept at the top; None if neither has it."""
    return (config.get("metadata") or {}).get(key) or config.get(key)


def make_card(
    repo_id: str, sae_id: str, config: Mapping[str, Any], summary: Mapping[str, Any], run_config: Mapping[str, Any]
) -> str:
    """The README.md of an SAE repository: what it was trained on and how, how good it is, how to load it.

    Args:
        repo_id: the repository.
        sae_id: the SAE's folder in it.
        config: its cfg.json.
        summary: its training_summary.json; empty if there is none.
        run_config: its runner_cfg.json; empty if there is none.
    """
    model, data = shown(metadata(config, "model_name")), shown(metadata(config, "dataset_path"))
    header = "".join(
        f"{key}: {name}\n" if key == "base_model" else f"{key}:\n- {name}\n"
        for key, name in (("base_model", model), ("datasets", data))
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    )
    figures = {**summary, **(summary.get("held_out") or {})}
    quality = table("held-out rows", figures.items()) if figures else "No figures were saved with it.\n"
    details = metadata(config, "training_architecture_details") or {}
    known = {**config, **details, **run_config, **run_config.get("sae", {})}
    settings = table("training", ((key, known[key]) for key in CARD_KEYS if known.get(key) is not None))
    return f"""---
library_name: saelens
tags:
- sparse-autoencoder
{header}---

# {repo_id.split("/")[-1]}

A sparse autoencoder ({metadata(config, "training_architecture") or config.get("architecture", "standard")}) with
{config["d_sae"]:,} features on `{metadata(config, "hook_name")}` (width {config["d_in"]:,}) of `{model}`, trained on
rows of {metadata(config, "context_size")} tokens of `{data}`.

```python
from sae_lens import SAE

sae = {loading_line(repo_id, sae_id)}
```

## Quality

{quality}
## Configuration

{settings}"""


def loading_line(repo_id: str, sae_id: str) -> str:
    """The Python expression that loads the SAE."""
    return f'SAE.from_pretrained("{repo_id}", "{sae_id}")'


def table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A Markdown table of names and values; values with parts of their own are left out."""
    lines = [f"| {title} | |", "|---|---|"]
    for name, value in rows:
        if not isinstance(value, Mapping):
            shown_value = f"{value:,}" if type(value) is int else f"{value:,.4g}" if type(value) is float else value
            lines.append(f"| {name.replace('_', ' ')} | {shown_value} |")
    return "\n".join(lines) + "\n"


def shown(name: str | None) -> str:
    """A Hub id as it is; only the last component of a local path: the rest would tell of this machine."""
    return display_name(name) if name else "unknown"


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what may be a local path as `shown`, at any depth."""
    public: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            value = without_paths(value)
        elif key in PATH_KEYS and isinstance(value, str):
            value = shown(value)
        public[key] = value
    return public


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--sae_path", type=Path, required=True, help="folder that train_sae.py wrote")
    parser.add_argument("--sae_id", help="the SAE's id, its folder in the repository (default: its hook name)")
    parser.add_argument("--hf_user", help="Hub user or organisation to push to, as <hf_user>/<model>-sae")
    parser.add_argument("--hf_repo", help="Hub repository to push to instead, as user/name")
    parser.add_argument("--hf_token", help="Hub token (default: the environment's HF_TOKEN or the Hub login)")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    args = parser.parse_args(argv)

    if not args.hf_user and not args.hf_repo:
        raise UserError("nowhere to push to: give --hf_user NAME or --hf_repo NAME/REPOSITORY")
    config = read_sae_folder(args.sae_path)
    sae_id = args.sae_id or metadata(config, "hook_name")
    if not sae_id:
        raise UserError(f"{args.sae_path / CONFIG} names no hook point; say --sae_id blocks.<layer>.hook_resid_post")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", sae_id) or ".." in sae_id:
        raise UserError(
            f"--sae_id {sae_id}: expected a folder's name in the repository, like blocks.19.hook_resid_post"
        )
    repo_id = args.hf_repo or f"{args.hf_user}/{shown(metadata(config, 'model_name')).split('/')[-1]}-sae"

    from transformer_lens_r1.shared.hub import check_hub_access

    check_hub_access(args, repo_id=repo_id, repo_type="model")
    with tempfile.TemporaryDirectory() as staging:
        folder = Path(staging)
        stage(args.sae_path, folder, repo_id=repo_id, sae_id=sae_id, config=config)
        push(folder, args.sae_path, repo_id=repo_id, sae_id=sae_id, token=args.hf_token, private=args.private)
    print(f"pushed; load it with {loading_line(repo_id, sae_id)}")


def stage(sae_path: Path, folder: Path, *, repo_id: str, sae_id: str, config: Mapping[str, Any]) -> None:
    """Lay out in `folder` what the repository will hold: README.md, and the SAE's files under its id."""
    target = folder / sae_id
    target.mkdir(parents=True)
    public = {name: without_paths(read_json(sae_path / name)) for name in (SUMMARY, RUN_CONFIG)}
    public[CONFIG] = without_paths(config)
    for name, value in public.items():
        if value:
            (target / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, SPARSITY):
        if (sae_path / name).is_file():
            (target / name).symlink_to((sae_path / name).resolve())  # at the paper's size the weights are 2 GB
    card = make_card(repo_id, sae_id, config, public[SUMMARY], public[RUN_CONFIG])
    (folder / CARD).write_text(card, encoding="utf-8")


def push(folder: Path, sae_path: Path, *, repo_id: str, sae_id: str, token: str | None, private: bool) -> None:
    """Upload what `stage` laid out: the SAE by SAELens' uploader, the rest after it.

    A card at the top of the repository that is another SAE's stays; this one's then goes into its own folder.

    Args:
        folder: what `stage` wrote.
        sae_path: the user's folder, for messages.
        repo_id: made if there is none.
        sae_id: the SAE's folder in the repository.
        token: the Hub token; None for the environment's or the login's.
        private: make the repository private.

    Raises:
        UserError: the upload failed.
    """
    import huggingface_hub

    from transformer_lens_r1.shared.hub import hub_errors, hub_fault, use_token

    use_token(token)  # SAELens' uploader takes no token: it finds that one
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        from sae_lens import upload_saes_to_huggingface

        upload_saes_to_huggingface({sae_id: folder / sae_id}, repo_id, show_progress=False, add_default_readme=False)
        if api.file_exists(repo_id, CARD):
            there = Path(api.hf_hub_download(repo_id, CARD, force_download=True)).read_text(encoding="utf-8")
            if loading_line(repo_id, sae_id) not in there:
                (folder / CARD).rename(folder / sae_id / CARD)
                print(f"the card of {repo_id} is another SAE's and stays; this one's is {sae_id}/{CARD}")
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            allow_patterns=[CARD, f"{sae_id}/{CARD}", f"{sae_id}/{SUMMARY}"],
            commit_message=f"Card and figures of {sae_id}",
        )
    except hub_errors() as error:
        reason = hub_fault(error).replace(str(folder), str(sae_path))
        raise UserError(
            f"the push to {repo_id} failed: {reason}; the SAE is still in {sae_path}: run the same command again"
        ) from error


if __name__ == "__main__":
    run(main)
