"""Publish a trained SAE on the Hugging Face Hub, where SAELens finds it by repository and id.

    python training/upload_sae.py --sae_path sae_runs/r1-distill-llama-8b --hf_user NAME

Afterwards: `SAE.from_pretrained("NAME/DeepSeek-R1-Distill-Llama-8B-sae", "blocks.19.hook_resid_post")`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_lens_r1.arguments import ArgumentParser
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import display_name

CONFIG, WEIGHTS, SPARSITY, SUMMARY = (
    "cfg.json",
    "sae_weights.safetensors",
    "sparsity.safetensors",
    "training_summary.json",
)
PATH_KEYS = ("model_name", "dataset_path", "checkpoint_path", "cached_activations_path", "from_pretrained_path")


def read_sae_folder(path: Path) -> dict[str, Any]:
    """The configuration of the SAE in a folder, once its weights have the shapes that it says.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the configuration.
    """
    from safetensors import SafetensorError, safe_open

    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{path} is no SAE folder: {name} is missing; expected what train_sae.py writes")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        d_in, d_sae = config["d_in"], config["d_sae"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path / CONFIG} is damaged ({error!r}); expected d_in and d_sae in JSON") from error
    expected = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    try:
        with safe_open(path / WEIGHTS, framework="np") as weights:
            names = set(weights.keys())
            shapes = {name: weights.get_slice(name).get_shape() for name in expected if name in names}
    except SafetensorError as error:
        raise UserError(f"{path / WEIGHTS} is damaged: {error}") from error
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise UserError(
                f"{path / WEIGHTS} has {name} of shape {shapes.get(name)}, but {CONFIG} says {shape}; "
                "the files belong to different SAEs"
            )
    return config


def metadata(config: Mapping[str, Any], key: str) -> Any:
    """A field that SAELens 6 keeps under `metadata` and SAELens 5 kept at the top; None where neither has it."""
    return (config.get("metadata") or {}).get(key) or config.get(key)


def make_card(repo_id: str, sae_id: str, config: Mapping[str, Any], summary: Mapping[str, Any] | None) -> str:
    """The README.md of an SAE repository: what it was trained on, how good it is, how to load it."""
    figures = (summary or {}).get("held_out", {})
    quality = "".join(f"- held-out {name.replace('_', ' ')}: {value:,.4g}\n" for name, value in figures.items())
    return f"""---
library_name: saelens
tags:
- sparse-autoencoder
---

# {repo_id.split("/")[-1]}

A sparse autoencoder with {config["d_sae"]:,} features on `{metadata(config, "hook_name")}` (width {config["d_in"]:,})
of `{shown(metadata(config, "model_name"))}`, trained on rows of {metadata(config, "context_size")} tokens of
`{shown(metadata(config, "dataset_path"))}`.

{quality}
```python
from sae_lens import SAE

sae = SAE.from_pretrained("{repo_id}", "{sae_id}")
```
"""


def shown(name: str | None) -> str:
    """A Hub id as it is; of a local path only the last part, because what is pushed leaves the machine."""
    return display_name(name) if name else "unknown"


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what may be a local path as `shown`, at the top level and under `metadata`."""
    public = {key: shown(value) if key in PATH_KEYS and value else value for key, value in config.items()}
    if isinstance(public.get("metadata"), Mapping):
        public["metadata"] = without_paths(public["metadata"])
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
    if args.hf_repo and args.hf_repo.count("/") != 1:
        raise UserError(f"--hf_repo {args.hf_repo}: expected user/name")
    config = read_sae_folder(args.sae_path)
    sae_id = args.sae_id or metadata(config, "hook_name")
    if not sae_id:
        raise UserError(f"{args.sae_path / CONFIG} names no hook point; say --sae_id blocks.<layer>.hook_resid_post")
    repo_id = args.hf_repo or f"{args.hf_user}/{shown(metadata(config, 'model_name')).split('/')[-1]}-sae"
    args.hf_user = repo_id.split("/")[0]

    from transformer_lens_r1.data import check_hub_access, push_folder

    check_hub_access(args)
    with tempfile.TemporaryDirectory() as staging:
        folder = Path(staging)
        stage(args.sae_path, folder, repo_id=repo_id, sae_id=sae_id, config=config)
        try:
            push_folder(folder, repo_id, repo_type="model", token=args.hf_token, private=args.private)
        except UserError as error:
            # The staged copy is about to go; what the user has is the folder that they named.
            raise UserError(str(error).replace(str(folder), str(args.sae_path))) from error
    print(f'pushed; load it with SAE.from_pretrained("{repo_id}", "{sae_id}")')


def stage(sae_path: Path, folder: Path, *, repo_id: str, sae_id: str, config: Mapping[str, Any]) -> None:
    """Lay out in `folder` what the repository will hold: README.md, and the SAE's files under its id."""
    summary_path = sae_path / SUMMARY
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.is_file() else None
    target = folder / sae_id
    target.mkdir(parents=True)
    (target / CONFIG).write_text(json.dumps(without_paths(config), indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, SPARSITY, SUMMARY):
        if (sae_path / name).is_file():
            # Linked where the file system can: at the paper's size the weights are 2 GB.
            try:
                (target / name).hardlink_to((sae_path / name).resolve())
            except OSError:
                shutil.copyfile(sae_path / name, target / name)
    (folder / "README.md").write_text(make_card(repo_id, sae_id, config, summary), encoding="utf-8")


if __name__ == "__main__":
    run(main)
