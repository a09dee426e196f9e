"""Steering in vLLM against the full SAE: the same log-likelihoods, whatever is steered, and counted positions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from material import Material
from measure import Rows
from reference import Reference
from vllm import SamplingParams

from lm_eval_sae.engines.vllm_engine import positions_of
from lm_eval_sae.engines.vllm_model import VLLMSAE, steered
from lm_eval_sae.steering.arguments import Steering, read_steering
from lm_eval_sae.steering.requests import intervention_key, request_arguments

STRENGTH = 2.0
NEW_TOKENS = 16
"""Of each greedy completion."""


class Case(NamedTuple):
    """An intervention."""

    name: str
    values: Mapping[int, float]
    """What each feature is set to, in folded units."""
    steering: Steering | None
    """The same for the engine."""

    @property
    def key(self) -> str:
        """By which the engine counts its positions."""
        return intervention_key(request_arguments(self.steering))


class Question:
    """Prompts, interventions, and the reference that knows the answers."""

    def __init__(self, material: Material) -> None:
        """Choose prompts and features: strong ones that are silent at most positions."""
        self.sizes = material.sizes
        share, rows = max(8, self.sizes.context // 16), self.sizes.tokens(4, seed=2).tolist()
        # They start alike: on a GPU some blocks of the prefix cache, in which what one case leaves would harm the next.
        self.prompts = [[*rows[0][:share], *row[share : 2 * share + 3 * i]] for i, row in enumerate(rows)]
        self.reference = Reference(material)
        seen = torch.cat([self.reference.residual(torch.tensor([prompt]))[0] for prompt in self.prompts])
        features = self.reference.features(seen)  # [positions, d_sae]
        largest = torch.where((features > 0).float().mean(dim=0) < 0.3, features.amax(dim=0), 0)
        maxima, best = (each.tolist() for each in largest.topk(2))
        self.cases = [Case("nothing steered", {}, None)]
        for name, count in (("one feature set", 1), ("two features set", 2)):
            entries = [
                {"sae_feature_idx": f, "sae_max_activation": m} for f, m in zip(best[:count], maxima, strict=False)
            ]
            file = material.sae.with_name("intervention.json")
            file.write_text(
                json.dumps({"sae_path": str(material.sae), "sae_strength": STRENGTH, "features": entries})
            )  # fmt: skip
            values = {entry["sae_feature_idx"]: STRENGTH * entry["sae_max_activation"] for entry in entries}
            self.cases.append(Case(name, values, read_steering({"sae_intervention_path": str(file)})))


def start(material: Material, *, can_steer: bool = True, **arguments: Any) -> VLLMSAE:
    """A compiled engine with room for two features at the SAE's layer, or vLLM's own."""
    layers = {material.sizes.layer: 2} if can_steer else None
    return VLLMSAE(str(material.checkpoint), max_model_len=2 * material.sizes.context, layers=layers, **arguments)


def sampling(tokens: int, *, logprobs: int | None) -> SamplingParams:
    """Greedy, of exactly so many tokens."""
    return SamplingParams(temperature=0, max_tokens=tokens, logprobs=logprobs, ignore_eos=True, detokenize=False)


def compare(rows: Rows, name: str, model: VLLMSAE, question: Question, *, limit: float) -> None:
    """Rows that compare an engine with the full SAE.

    Differences are stated in parts of what steering changes: a wrong formula would be wrong by a good part of that.

    Args:
        rows: where they go.
        name: of the engine.
        model: of `start`.
        question: what it is asked.
        limit: of the differences; the number formats decide it.
    """
    expect, prompts = question.reference.log_likelihood, question.prompts
    halves = [(prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :]) for prompt in prompts]
    requests = [((f"prompt {i}", "its rest"), *parts) for i, parts in enumerate(halves)]
    found: list[tuple[str, str, list[float], list[float]]] = []  # case, what was asked for, answers, expected ones
    effects = {"log-likelihoods": 0.0, "greedy completions": 0.0}
    completions = _complete_mixed(rows, name, model, question)
    for case in question.cases:
        model.set_intervention(case.steering)
        likelihoods = [value for value, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]
        outputs = completions[case.name]
        of_completions = [output.outputs[0].cumulative_logprob for output in outputs]
        completed = [(prompt, output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs, strict=True)]
        for kind, texts, answers in zip(effects, (halves, completed), (likelihoods, of_completions), strict=True):
            expected, plain = ([expect(*text, values) for text in texts] for values in (case.values, {}))
            effects[kind] = max(effects[kind], largest_difference(expected, plain))
            found.append((case.name, kind, answers, expected))
    for kind, effect in effects.items():
        rows.note(f"{name}: largest effect of steering on {kind}", effect)
    for case_name, kind, answers, expected in found:
        worst = largest_difference(answers, expected) / effects[kind]
        rows.at_most(f"{name}, {case_name}: {kind}, difference over effect", worst, limit)


def _complete_mixed(rows: Rows, name: str, model: VLLMSAE, question: Question) -> dict[str, list[Any]]:
    """Greedy completions of every prompt under every case, by case, all in one batch; a row for counted positions."""
    cases, greedy = question.cases, sampling(NEW_TOKENS, logprobs=1)
    keys = [case.key for case in cases if case.key]
    before = model.engine.steered_positions(keys)
    params = [steered(greedy, case.steering) for case in cases] * len(question.prompts)
    outputs = model.engine.generate([prompt for prompt in question.prompts for _ in cases], params, progress=False)
    after = model.engine.steered_positions(keys)
    of_case = {case.name: outputs[i :: len(cases)] for i, case in enumerate(cases)}
    for case in cases:
        if case.key:
            needed, counted = sum(map(positions_of, of_case[case.name])), after[case.key] - before[case.key]
            # An asynchronous scheduler may run a request one step too far.
            rows.check(f"{name}, {case.name}: steered positions", counted, f"≥ {needed}", counted >= needed)
    return of_case


def largest_difference(some: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))
