"""The model `hf-sae`: lm-eval's transformers back end with a feature steered at every token.

    python -m lm_eval_sae --model hf-sae --tasks math-500 --model_args \
        pretrained=MODEL,sae_path=SAE,sae_feature_idx=46379,sae_strength=2.0,sae_max_activation=5.84
"""

import base64
import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lm_eval_sae.engines.arguments import in_one_line
from lm_eval_sae.engines.kept_completions import Unfinished, digest, model_files, unfinished_of
from lm_eval_sae.engines.model_files import load_model_config, load_tokenizer
from lm_eval_sae.engines.requests import require_room, split_cutoff, with_arguments
from lm_eval_sae.engines.run_info import run_info
from lm_eval_sae.errors import NotSteered, UserError
from lm_eval_sae.grading.completion import Completion, count_reasoning, measure_completion
from lm_eval_sae.steering.arguments import Steering, check_model, read_steering, split_arguments
from lm_eval_sae.steering.intervention import FeatureIntervention, make_intervention

logger = logging.getLogger(__name__)


class HFSAE(HFLM):
    """HFLM whose layers leave their residual stream, or as published their MLP's output, with SAE features changed.

    The change applies to every token, prompt and generated, in `generate_until` and `loglikelihood` alike. Takes
    HFLM's arguments and those of `steering.arguments.ARGUMENTS`; with none of the latter it is HFLM. Completions
    carry their length in tokens in either case.

    `steered_positions` counts token positions that were changed. Left padding of a batch is not counted; the right
    padding of `loglikelihood` batches, and rows that wait for the rest of their batch, are.
    """

    def __init__(self, pretrained: Any, **kwargs: Any) -> None:
        arguments, kwargs = split_arguments(kwargs)
        steering = read_steering(arguments, functools.partial(load_tokenizer, pretrained, kwargs))
        if steering is not None and isinstance(pretrained, str):
            check_model(steering, load_model_config(pretrained, kwargs), name=pretrained)
        with in_one_line("--model_args"):
            super().__init__(pretrained, **kwargs)

        self._requests_of_batch: list[int] = []
        self._cutoffs: list[int | None] = []  # of each request
        self._lengths: dict[int, tuple[int, bool, int | None]] = {}  # of each request, in the order of `Completion`
        self._attention_mask: Tensor | None = None
        self._warned_of: set[int] = set()
        self._hooks: list[RemovableHandle] = []
        self._steered: dict[int, Tensor | int] = {}
        self._earlier_positions = 0  # of completions that an earlier try of the run left
        self._unfinished: Unfinished | None = None  # where batches are kept, and what an earlier try left there
        self._kept: dict[str, Any] = {}
        self._name, self._arguments = pretrained, kwargs
        self.steering: Steering | None = None
        self.set_intervention(steering)

    def set_intervention(self, steering: Steering | None) -> None:
        """Changes what is steered from here on; None steers nothing. Positions are counted from 0.

        Raises UserError if the SAE does not fit the model; what was steered before then stays.
        """
        if steering is not None:
            check_model(steering, self.model.config, name=self.model.config._name_or_path or "the model")
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._steered, self.steering = [], {}, steering
        self._earlier_positions = 0
        self._values: dict[int, str] = {}  # by layer, the digest of what is steered
        if steering is None:
            return
        layers = decoder_layers(self.model)
        self._hooks.append(self.model.register_forward_pre_hook(self._note_attention_mask, with_kwargs=True))
        for index, features in steering.layers().items():
            layer = layers[index].mlp if features[0].on_mlp_output else layers[index]
            intervention = make_intervention(features).to(next(layer.parameters()).device)
            self._values[index] = digest({name: buffer.tolist() for name, buffer in intervention.named_buffers()})
            self._steered[index] = 0
            self._hooks.append(layer.register_forward_hook(functools.partial(self._steer, index, intervention)))
        logger.info("Steering %s", steering.record())

    @property
    def steered_positions(self) -> int:
        """Token positions changed since the intervention was set: of several layers, where there are fewest.

        Those of completions that an earlier try of the same run left are among them.
        """
        return min((int(count) for count in self._steered.values()), default=0) + self._earlier_positions

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's entries for the results file, and those of `run_info`."""
        return super().get_model_info() | run_info(self.steering, steered_positions=self.steered_positions)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """HFLM's completions, each a `Completion`.

        Repeats are drawn one after the other from torch's random generator, which lm-eval's --seed sets.
        """
        self._lengths = {}
        self._cutoffs = []
        self._unfinished = unfinished_of(self._identity())
        self._kept = self._unfinished.read() if self._unfinished else {}
        indexed = []
        for index, request in enumerate(requests):
            context, gen_kwargs, *others = request.args
            engine_kwargs, cutoff = split_cutoff(gen_kwargs)
            self._warn_of_unknown(cutoff)
            require_room(
                len(self.tok_encode(context)), engine_kwargs.get("max_gen_toks", self.max_gen_toks), self.max_length
            )
            self._cutoffs.append(cutoff)
            indexed.append(with_arguments(request, _Prompt(context, index), engine_kwargs, *others))
        texts = super().generate_until(indexed, disable_tqdm=disable_tqdm)
        return [Completion(text, *self._lengths[index]) for index, text in enumerate(texts)]

    def tok_batch_encode(self, strings: Sequence[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """HFLM's, and notes which requests make up the batch that is about to be generated."""
        self._requests_of_batch = [string.index for string in strings if isinstance(string, _Prompt)]
        return super().tok_batch_encode(strings, *args, **kwargs)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """HFLM's, or what an earlier try of the run kept of the batch: [batch, prompt + new]."""
        if self._unfinished is None:
            return self._generate(context, max_length, stop, **generation_kwargs)[0]
        plain = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in generation_kwargs.items()}
        # A batch that is drawn again comes with another state of the generator.
        key = digest([context.tolist(), max_length, stop, plain, random_state(context.device)])
        kept = self._kept.get(key)
        if kept is not None:
            logger.info("%s completions are there from an earlier try", len(kept["rows"]))
            set_random_state(kept["random_state"], context.device)
            self._earlier_positions += kept["positions"]
            tokens = torch.cat([context, torch.tensor(kept["rows"], dtype=context.dtype, device=context.device)], dim=1)
            self._measure(tokens, max_length, stop, prompt_width=context.shape[1])
            return tokens
        tokens, positions = self._generate(context, max_length, stop, **generation_kwargs)
        rows = tokens[:, context.shape[1] :].tolist()
        state = random_state(context.device)
        self._unfinished.add([(key, {"rows": rows, "positions": positions, "random_state": state})])
        return tokens

    def _generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> tuple[Tensor, int]:
        """HFLM's tokens, and how many positions were steered for them."""
        before = self.steered_positions
        if self.steering is not None and self.steering.word_bias is not None:
            biases = self.steering.word_bias.of_tokens
            generation_kwargs["sequence_bias"] = {(token,): bias for token, bias in biases.items()}
        tokens = super()._model_generate(context, max_length, stop, **generation_kwargs)  # [batch, prompt + new]
        lengths = self._measure(tokens, max_length, stop, prompt_width=context.shape[1])
        steered = self.steered_positions - before
        if self._steered:
            mask = generation_kwargs.get("attention_mask")
            prompt = context.numel() if mask is None else int(mask.sum())
            # The last token of a row is not fed back, so nothing is left to steer there.
            self._require_steered(steered, prompt + sum(n - 1 for n in lengths))
        return tokens, steered

    def _measure(self, tokens: Tensor, max_length: int, stop: list[str], *, prompt_width: int) -> list[int]:
        """Notes the lengths of the completions of the batch, and returns them."""
        rows = tokens[:, prompt_width:].tolist()
        lengths = [
            measure_completion(
                row,
                eos_ids=self._eos_ids(),
                stop=stop,
                max_tokens=max_length - prompt_width,
                decode=lambda ids: self.tok_decode(ids, skip_special_tokens=False),
            )
            for row in rows
        ]
        for index, row, (length, truncated) in zip(self._requests_of_batch, rows, lengths, strict=True):
            self._lengths[index] = (length, truncated, count_reasoning(row[:length], self._cutoffs[index]))
        return [length for length, _ in lengths]

    def _identity(self) -> dict[str, Any]:
        """What completions depend on beside their request and the state of the random generator."""
        return {
            "model": [str(self._name), model_files(str(self._name)), str(self.model.dtype), str(self.device)],
            "arguments": self._arguments,
            "steering": self.steering and [self.steering.record(), self._values],
            "versions": [transformers.__version__, torch.__version__],
        }

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before = self.steered_positions
        logits = super()._model_call(inps, *args, **kwargs)
        if self._steered:
            self._require_steered(self.steered_positions - before, inps.numel())
        return logits

    def _warn_of_unknown(self, cutoff: int | None) -> None:
        if cutoff is None or cutoff in self._warned_of:
            return
        self._warned_of.add(cutoff)
        vocabulary = self.model.config.get_text_config().vocab_size
        if cutoff >= vocabulary:
            logger.warning(
                "cutoff_token %s is no token of the model, which has %s: whole completions count as reasoning",
                cutoff,
                vocabulary,
            )

    def _require_steered(self, steered: int, required: int) -> None:
        if steered < required:
            raise NotSteered(f"only {steered} of {required} token positions were steered")

    def _eos_ids(self) -> set[int]:
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        ids = set(eos if isinstance(eos, list) else [eos])
        return (ids | {self.tokenizer.eos_token_id}) - {None}

    def _note_attention_mask(self, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        self._attention_mask = kwargs.get("attention_mask")

    def _steer(
        self, index: int, intervention: FeatureIntervention, _module: nn.Module, _args: tuple, output: Tensor | tuple
    ) -> Tensor | tuple:
        hidden = output[0] if isinstance(output, tuple) else output  # [batch, pos, d_in]
        mask = self._attention_mask
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= hidden.shape[1]:
            self._steered[index] += mask[:, -hidden.shape[1] :].sum()
        else:
            self._steered[index] += hidden.shape[0] * hidden.shape[1]
        changed = intervention(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def random_state(device: torch.device) -> list[str]:
    """What completions are drawn from next, as text: the state of torch's generator, and of the GPU's."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return [base64.b64encode(state.numpy().tobytes()).decode() for state in states]


def set_random_state(state: Sequence[str], device: torch.device) -> None:
    """Goes back to a state of `random_state`."""
    cpu, *gpu = (torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for text in state)
    torch.set_rng_state(cpu)
    for of_gpu in gpu:
        torch.cuda.set_rng_state(of_gpu, device)


class _Prompt(str):
    """A prompt that knows which request it belongs to, wherever the batching of lm-eval takes it."""

    index: int

    def __new__(cls, text: str, index: int) -> "_Prompt":
        self = super().__new__(cls, text)
        self.index = index
        return self


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model as transformers lays out those of `ARCHITECTURES`."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(model).__name__} has no list of decoder layers, so it cannot be steered")
    return layers
