"""SAEs in both of SAELens' layouts: read early, checked against the model, loaded in folded units."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reasonscore import sae as sae_module
from reasonscore.sae import find_sae, load_sae

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file

ARCHITECTURES = ["standard", "jumprelu", "gated", "topk", "topk_rescaled"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_scales_activations_by_the_decoder_norm_and_keeps_reconstructions(
    make_sae: Callable[..., Path], architecture: str
) -> None:
    from sae_lens import SAE

    folder = make_sae(architecture)
    raw = SAE.load_from_disk(folder)
    folded = load_sae(find_sae(str(folder)))
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # A TopK SAE that rescales gives activations in units of unit decoder directions already.
        norm = 1 if architecture == "topk_rescaled" else raw.W_dec.norm(dim=1)
        torch.testing.assert_close(folded.encode(x), raw.encode(x) * norm)
        torch.testing.assert_close(folded(x), raw(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(40))
        assert (folded.encode(x) > 0).any()
        folded.fold_W_dec_norm()
        torch.testing.assert_close(folded.encode(x), raw.encode(x) * norm)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [7, 1000])
def test_blocks_of_features_put_together_are_the_whole_encoder(
    make_sae: Callable[..., Path], architecture: str, size: int
) -> None:
    sae = load_sae(find_sae(str(make_sae(architecture))))
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        whole = sae.encode(x)
        together = torch.full_like(whole, torch.nan)
        for features, block in sae_module.encoder_blocks(sae, size):
            together[..., features] = block(x)
        chosen = sae_module.encoder_of(sae, [31, 0, 7])(x)
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(chosen, whole[..., [31, 0, 7]])


def test_the_layout_of_saelens_5_is_read(legacy_sae: Path) -> None:
    source = find_sae(str(legacy_sae))
    assert (source.d_in, source.d_sae, source.hook_name) == (256, 1024, "blocks.2.hook_resid_post")
    assert (source.context_size, source.prepend_bos, source.exclude_special_tokens) == (128, False, [0, 1])
    assert load_sae(source).W_enc.shape == (256, 1024)


def test_an_id_names_a_folder_within_a_repository(make_sae: Callable[..., Path]) -> None:
    folder = make_sae(name="repo/blocks.2.hook_resid_post")
    source = find_sae(str(folder.parent), "blocks.2.hook_resid_post")
    assert source.folder == folder and source.weights_sha256 == hash_file(folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match="--sae_id, one of: blocks.2.hook_resid_post"):
        find_sae(str(folder.parent))


def test_a_folder_of_one_sae_takes_no_id_but_its_hook_point(legacy_sae: Path) -> None:
    assert find_sae(str(legacy_sae), "blocks.2.hook_resid_post").folder == legacy_sae
    with pytest.raises(UserError, match="--sae_id blocks.19.hook_resid_post: .* at blocks.2.hook_resid_post"):
        find_sae(str(legacy_sae), "blocks.19.hook_resid_post")


def test_what_is_no_sae_is_refused_in_one_line(make_sae: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no SAE folder"):
        find_sae(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="give --sae_id"):
        find_sae("someone/some-sae")
    folder = make_sae()
    config, weights = json.loads((folder / "cfg.json").read_text()), folder / "sae_weights.safetensors"
    (folder / "cfg.json").write_text(json.dumps({**config, "architecture": "temporal"}))
    with pytest.raises(UserError, match="architecture temporal .* supported are"):
        find_sae(str(folder))
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 41}))
    with pytest.raises(UserError, match="cannot load the weights"):
        load_sae(find_sae(str(folder)))
    (folder / "cfg.json").write_text(json.dumps(config))
    for kept in (0.6, 0.0001):
        weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * kept)])
        with pytest.raises(UserError, match="^cannot load the weights of SAE [^\n]+$"):
            load_sae(find_sae(str(folder)))
    weights.unlink()
    with pytest.raises(UserError, match="has no sae_weights.safetensors"):
        find_sae(str(folder))
