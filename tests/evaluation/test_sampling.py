"""Seeds of repeats: all different, and the same in every run."""

from lm_eval.api.instance import Instance

from lm_eval_sae.engines.requests import number_repeats, request_seed


def request(prompt: str, task: str = "task", doc_id: int = 0) -> Instance:
    return Instance("generate_until", {}, (prompt, {}), 0, metadata=(task, doc_id, 1))


def test_repeats_are_numbered_as_lm_eval_passes_them() -> None:
    a, b, a_again = request("a"), request("b", doc_id=1), request("a", doc_id=2)
    clones = [a] * 3 + [b] * 3 + [a_again] * 2 + [request("a", task="other")] * 2
    assert number_repeats(clones) == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]


def test_seeds_differ_by_seed_prompt_and_repeat_and_are_fixed_for_good() -> None:
    seeds = [request_seed(s, p, r) for s in (0, 1, 1234) for p in ("a", "b", "What is 2 + 2?") for r in range(64)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(1234, "Wie groß?", 3) == 626340567
