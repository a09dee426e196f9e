"""A training run from its first step, or its newest checkpoint, to the measured SAE on the disk."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import wandb
from sae_lens import SAE, LanguageModelSAETrainingRunner
from sae_lens.constants import SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.prefetch import PrefetchingIterator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sae_training import checkpoints
from sae_training.activations import ActivationSource, ActivationStream, Prefetched, read_tokens
from sae_training.checkpoints import RUN_CONFIG, SAE_CONFIG, SUMMARY, recorded_settings
from sae_training.held_out import HeldOutEvaluator
from sae_training.stopping import Stopped, stop_signals
from sae_training.trainer import Trainer
from transformer_lens_r1.forward import compile_layers
from transformer_lens_r1.loading import quiet, rope_context_of
from transformer_lens_r1.shared.errors import UserError, first_line
from transformer_lens_r1.shared.files import atomic_directory, write_json
from transformer_lens_r1.shared.ranks import Agreement, Ranks
from transformer_lens_r1.shared.same_run import check_same_run

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig

SAVING_FAILS = (OSError, RuntimeError, SafetensorError)  # a full disk, as the three libraries that write report it

logger = logging.getLogger(__name__)


class Runner(LanguageModelSAETrainingRunner):
    """SAELens' runner with a stream that can be continued, held-out evaluation, and checkpoints that are whole."""

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        model: Any,
        train_rows: Dataset,
        held_out_rows: Dataset,
        extra: Mapping[str, Any],
        ranks: Ranks = Ranks(),  # noqa: B008 - one process, and frozen
    ) -> None:
        """
        Args:
            cfg: what `build_config` made.
            model: a TransformerBridge with at least the hook's layers, all of them for `evaluate_cross_entropy`.
            train_rows: column `tokens`, rows of `cfg.context_size` ids.
            held_out_rows: the same, for the figures in the summary.
            extra: the values of `config.EXTRA_KEYS`.
            ranks: that train together; the first one alone writes the SAE and logs.
        """
        torch.set_float32_matmul_precision(extra["float32_matmul_precision"])
        # SAELens draws the initial weights from torch's global generator, which it never seeds.
        torch.manual_seed(cfg.seed)
        with warnings.catch_warnings(), quiet("sae_lens"):  # it warns that a model and a data set were handed to it
            # It compares a number of rows with a number of tokens; `report_epochs` says it right.
            warnings.filterwarnings("ignore", message="The training dataset contains fewer samples")
            # Handed to it, the SAE is that of the config. For `from_pretrained_path` SAELens would take the finished
            # SAE's own settings in place of the section `sae`.
            sae = TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
            super().__init__(cfg, override_model=model, override_dataset=train_rows, override_sae=sae)
        if cfg.from_pretrained_path is not None:
            self.sae.load_weights_from_checkpoint(cfg.from_pretrained_path)
        elif extra["decoder_init"] == "published":
            start_as_published(self.sae)
        self.extra, self.ranks, self.agreement = extra, ranks, Agreement(ranks)
        self.folder = None if cfg.checkpoint_path is None else Path(cfg.checkpoint_path)
        source = ActivationSource.of_config(cfg, self.model)
        self.stream = ActivationStream.of_config(cfg, source, train_rows, ranks)
        self.evaluator = HeldOutEvaluator(
            source,
            held_out_rows,
            batch_size=cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts,
            cross_entropy=extra["evaluate_cross_entropy"],
            ranks=ranks,
        )
        self.manifest: dict[str, Any] = {
            "ranks": ranks.size,
            "config": checkpoints.run_settings(cfg, extra),
            "rows": len(train_rows),
            "rows_sha256": hash_rows(train_rows, held_out_rows),
            "wandb_id": cfg.logger.wandb_id,
            "seconds": 0.0,
        }

    def _compile_llm_if_needed(self) -> None:
        """In place of SAELens' own, which compiles `run_with_cache`; activations come from `residual_stream` here."""
        if self.cfg.compile_llm:
            compile_layers(self.model, self.cfg.llm_compilation_mode)

    def run(self, checkpoint: Path | None = None) -> dict[str, Any]:
        """Train and write the SAE to `cfg.output_path`, whole or not at all.

        Args:
            checkpoint: a complete one of the same run to continue from.

        Returns:
            What `training_summary.json` holds.

        Raises:
            Stopped: Ctrl-C or SIGTERM came; what there was to save is saved.
        """
        cfg = self.cfg
        self.started = self.last_saved = time.monotonic()
        cfg.save_final_checkpoint = cfg.save_final_checkpoint and self.ranks.is_first
        self._set_sae_metadata()
        self.sae.cfg.metadata.rope_original_context = rope_context_of(self.model.original_model.config)
        if checkpoint is not None:
            self._check_rows(checkpoint)
        self._start_wandb()
        if self.folder is not None and self.ranks.is_first:
            checkpoints.begin(self.folder, Path(str(cfg.output_path)), keep=checkpoint is not None)
        self.trainer = Trainer(
            sae=self.sae,
            data_provider=self.stream,
            evaluator=self.evaluator,
            cfg=cfg.to_sae_trainer_config(),
            between_steps=self._between_steps,
            save_snapshot=self._save_snapshot,
            is_folded=cfg.from_pretrained_path is not None,
            ranks=self.ranks,
        )
        if checkpoint is not None:
            self._load(checkpoint)
        self._compile_sae_if_needed()
        self.provider: ActivationStream | Prefetched = self.stream
        if cfg.prefetch_llm_batches:
            self.provider = Prefetched(self.stream, int(cfg.prefetch_llm_batches))
            self.trainer.data_provider = self.provider
        try:
            with stop_signals(self.ranks) as self.signals, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="To copy construct from a tensor")
                sae = self.trainer.fit()
                if self.ranks.is_first:
                    self.save_final_sae(sae, str(cfg.output_path), self.trainer.log_feature_sparsity)
                if signum := self.ranks.highest(self._signum()):
                    message = f"stopped after the last step; the SAE is {cfg.output_path}; measure it with: "
                    raise Stopped(signum, message)
        except Stopped as stop:
            if cfg.logger.log_to_wandb:
                wandb.finish(exit_code=128 + stop.signum)
            raise
        finally:
            if isinstance(self.provider, PrefetchingIterator):
                self.provider.close()
        sae.eval()
        return self._measure(sae)

    def measure_only(self) -> dict[str, Any]:
        """Measure the SAE that is on the disk, for a run that was ended after its last step."""
        return self._measure(SAE.load_from_disk(str(self.cfg.output_path), device=self.cfg.device))

    def _measure(self, sae: Any) -> dict[str, Any]:
        """Add the held-out figures to the summary beside the SAE, and remove the checkpoints, no longer needed."""
        figures = self.evaluator.quality(sae).figures()
        if not self.ranks.is_first:
            return {}
        path = Path(str(self.cfg.output_path)) / SUMMARY
        summary = {**json.loads(path.read_text(encoding="utf-8")), "held_out": figures}
        if wandb.run is not None:
            shown = {f"held_out/{name}": value for name, value in figures.items() if name != "tokens"}
            wandb.log(shown, step=summary["training_steps"])
            wandb.finish()
        write_json(path, summary)
        if self.folder is not None:
            checkpoints.remove_all(self.folder)
        return summary

    def save_final_sae(self, sae: TrainingSAE[Any], output_path: str, log_feature_sparsity: Any = None) -> None:
        """The SAE, whole or not at all, and before anything that measuring may run into."""
        summary = {
            "training_tokens": self.trainer.n_training_samples,
            "training_steps": self.trainer.n_training_steps,
            "dead_features": int(self.trainer.dead_neurons.sum().item()),
            "seconds": round(self._seconds(), 1),
        }
        to_wandb = self.cfg.logger.log_to_wandb
        self.cfg.logger.log_to_wandb = False  # not before the SAE is in its place
        try:
            with atomic_directory(output_path) as folder:
                super().save_final_sae(sae, str(folder), log_feature_sparsity)
                write_json(folder / RUN_CONFIG, recorded_settings(self.cfg, self.extra))
                write_json(folder / SUMMARY, summary)
        except SAVING_FAILS as error:
            raise UserError(
                f"cannot write the SAE to {output_path} ({first_line(error)}); make room there and give the same "
                "command with --resume"
            ) from error
        finally:
            self.cfg.logger.log_to_wandb = to_wandb
        self._log_files(Path(output_path), ["final_model"])

    def _log_files(self, folder: Path, aliases: list[str] | None = None) -> None:
        """Hand an SAE that is on the disk to W&B, whose refusal must not end a run."""
        if not self.cfg.logger.log_to_wandb:
            return
        files = [folder / name for name in (SAE_WEIGHTS_FILENAME, SAE_CONFIG, SPARSITY_FILENAME)]
        try:
            self.cfg.logger.log(self, *files, wandb_aliases=aliases)
        except (ValueError, *SAVING_FAILS) as error:
            logger.warning("W&B did not take the SAE in %s: %s", folder, first_line(error))

    def _start_wandb(self) -> None:
        if not self.cfg.logger.log_to_wandb:
            return
        if not self.ranks.is_first:
            wandb.init(mode="disabled")  # what this rank logs goes nowhere
            return
        settings = self.cfg.logger
        self.manifest["wandb_id"] = self.manifest["wandb_id"] or uuid.uuid4().hex[:8]
        offline = wandb.setup().settings.mode == "offline"
        wandb.init(
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            config=self.cfg.to_dict(),
            name=settings.run_name,
            id=self.manifest["wandb_id"],
            # Offline, each part of a run is a folder of its own with the same id; `wandb sync` joins them.
            resume=None if offline else "allow",
        )

    def _between_steps(self, trainer: Trainer) -> None:
        """Save or stop if any rank wishes to: all of them after the same step."""
        finished = trainer.n_training_samples >= self.cfg.total_training_tokens
        signum, due = self.agreement.reached(self._wishes())
        if finished:
            return
        if signum:
            raise Stopped(signum, self._stop_message())
        if due:
            try:
                self._save()
            except SAVING_FAILS as error:
                # A full disk must not end a run of days; the last checkpoints are still there.
                logger.warning("no checkpoint at step %d: %s", trainer.n_training_steps, first_line(error))
            self.last_saved = time.monotonic()
        self.agreement.ask(self._wishes())

    def _signum(self) -> int:
        return self.signals[0] if self.signals else 0

    def _wishes(self) -> tuple[int, bool]:
        """The signal that this rank was sent, or 0, and whether it is time for a checkpoint."""
        every = self.extra["checkpoint_every_minutes"]
        can_save = self.folder is not None and every is not None
        return self._signum(), can_save and time.monotonic() - self.last_saved >= 60 * every

    def _stop_message(self) -> str:
        """Save if there is a place for it, and say what is left."""
        steps = f"stopped after step {self.trainer.n_training_steps:,} of {self.cfg.total_training_steps:,}"
        if self.folder is None:
            return f"{steps}; nothing is saved because checkpoint_path is null; start again with: "
        try:
            saved = self._save()
        except SAVING_FAILS as error:
            return f"{steps}, but could not save a checkpoint ({first_line(error)}); continue from the last one with: "
        return f"{steps} and saved {saved}; continue with: "

    def _seconds(self) -> float:
        return self.manifest["seconds"] + time.monotonic() - self.started

    def _save(self) -> Path:
        """Save a checkpoint: every rank its stream, and when all streams are there the first rank the rest."""
        trainer = self.trainer
        assert self.folder is not None
        name = checkpoints.name_of(trainer.n_training_steps, trainer.norm_batches)
        streams = self.folder / f".{name}.streams"

        def save_stream() -> None:
            streams.mkdir(parents=True, exist_ok=True)
            state = {**self.provider.state_dict(), "torch_rng": torch.get_rng_state()}
            state = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(state, streams / checkpoints.stream_file(self.ranks.rank))

        def save(folder: Path) -> None:
            for file in map(checkpoints.stream_file, range(self.ranks.size)):
                (streams / file).replace(folder / file)
            self.sae.save_model(folder)
            trainer.save_trainer_state(folder)

        manifest = {
            **self.manifest,
            "seconds": self._seconds(),
            "steps": trainer.n_training_steps,
            "tokens": trainer.n_training_samples,
            "trainer": trainer.state(),
        }

        def write() -> None:
            if self.ranks.is_first:
                checkpoints.write(self.folder, name, save, manifest, keep=self.extra["checkpoints_kept"])

        try:
            self.ranks.all_or_none(save_stream, SAVING_FAILS)
            self.ranks.all_or_none(write, SAVING_FAILS)
        finally:
            if self.ranks.is_first:
                shutil.rmtree(streams, ignore_errors=True)
        return self.folder / name

    def _check_rows(self, checkpoint: Path) -> None:
        saved = checkpoints.read_manifest(checkpoint)
        rows = [{key: manifest[key] for key in ("rows", "rows_sha256")} for manifest in (saved, self.manifest)]
        check_same_run(checkpoint, *rows, remedy=checkpoints.REMEDY)
        self.manifest |= {name: saved[name] for name in ("wandb_id", "seconds")}

    def _load(self, checkpoint: Path) -> None:
        manifest = checkpoints.read_manifest(checkpoint)
        self.trainer.load(checkpoint, manifest["trainer"])
        self.sae.load_weights_from_checkpoint(checkpoint)
        if (saved := manifest.get("ranks", 1)) != self.ranks.size:
            files = [checkpoint / checkpoints.stream_file(rank) for rank in range(saved)]
            # The first row that no rank has read.
            self.stream.rows_read += min(int(read_tensor(file, "rows_read")) for file in files)
            if self.ranks.is_first:
                print(
                    f"{checkpoint} is of {saved} rank{'s' * (saved > 1)}, and this run has {self.ranks.size}: the "
                    "buffers begin anew, from the first row that was not read",
                    file=sys.stderr,
                )
            return
        state = load_file(checkpoint / checkpoints.stream_file(self.ranks.rank))
        torch.set_rng_state(state.pop("torch_rng"))
        self.stream.load_state_dict(state)

    @torch.no_grad()
    def _save_snapshot(self, trainer: Trainer) -> None:
        """The SAE as it would be if the run ended here, in `<checkpoint folder>/<tokens>`, as SAELens names them."""
        if self.folder is None or not self.ranks.is_first:
            return
        folder = self.folder / str(trainer.n_training_samples)
        sae, scaler = copy.deepcopy(trainer.sae), trainer.activation_scaler
        if scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        if scaler.whitening is not None:
            sae.fold_activation_whitening(
                mean=scaler.whitening.mean,
                whitening_matrix=scaler.whitening.matrix,
                unwhitening_matrix=scaler.whitening.inverse_matrix,
            )
        try:
            with atomic_directory(folder) as temporary:
                sae.save_inference_model(temporary)
                save_file({"sparsity": trainer.log_feature_sparsity}, temporary / SPARSITY_FILENAME)
        except SAVING_FAILS as error:
            # A full disk must not end a run of days.
            logger.warning("no snapshot at step %d: %s", trainer.n_training_steps, first_line(error))
        else:
            self._log_files(folder)


@torch.no_grad()
def start_as_published(sae: TrainingSAE[Any]) -> None:
    """Draw the initial weights of `sae`, in place, as SAELens 5.5.2 did with `decoder_heuristic_init`.

    Decoder rows are uniform on [0, 1)^d_in, scaled to `decoder_init_norm`; the encoder is the decoder transposed. If
    that norm is null, which is `decoder_heuristic_init: false`, nothing changes.
    """
    norm = sae.cfg.decoder_init_norm
    if norm is not None:
        rows = torch.rand_like(sae.W_dec)
        sae.W_dec.copy_(norm * rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def hash_rows(*parts: Dataset) -> str:
    """SHA-256 of up to 64 evenly spaced rows of each part: other tokens in the same place are told from these."""
    digest = hashlib.sha256()
    for rows in parts:
        for index in range(0, len(rows), max(1, len(rows) // 64)):
            digest.update(read_tokens(rows, index, index + 1).numpy().tobytes())
    return digest.hexdigest()
