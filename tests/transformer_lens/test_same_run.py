"""A result is continued only by the run that began it, and a refusal names the first difference."""

from pathlib import Path

import pytest

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.same_run import check_same_run, first_difference

RUN = {"alpha": 0.7, "window": (1, 2), "sae": {"width": 512, "weights_sha256": "a" * 64}, "tokens": Path("data")}


def test_the_same_run_is_continued_however_it_was_saved() -> None:
    as_json = {"tokens": "data", "sae": {"weights_sha256": "a" * 64, "width": 512}, "window": [1, 2], "alpha": 0.7}
    check_same_run("scores/", as_json, RUN, remedy="name another folder")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"alpha": 0.5}, "alpha is 0.7 there and 0.5 here"),
        ({"sae": {"width": 512, "weights_sha256": "b" * 64}}, "sae.weights_sha256 is not the same"),
        ({"words": ["wait", "maybe"] * 9}, "words is not the same"),
        ({"alpha": None}, "alpha is 0.7 there and null here"),
        ({"seed": 1, "alpha": 0.5}, "alpha is 0.7 there and 0.5 here"),
        ({"seed": 1}, "seed is null there and 1 here"),
    ],
)
def test_another_run_is_refused_with_the_first_difference(change: dict, difference: str) -> None:
    assert first_difference(RUN, {**RUN, **change}) == difference
    with pytest.raises(UserError) as caught:
        check_same_run("scores/", RUN, {**RUN, **change}, remedy="name another folder")
    assert str(caught.value) == f"scores/ belongs to another run: {difference}; name another folder"


def test_a_setting_that_only_the_saved_run_has_is_a_difference() -> None:
    assert first_difference({**RUN, "seed": 1}, RUN) == "seed is 1 there and null here"
