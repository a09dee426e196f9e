"""Which letter a completion of a multiple-choice question states."""

import pytest

from lm_eval_sae.grading.letters import last_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("Answer: C) 10^-4 eV", "C"),
        ("<think>\nAnswer: B\n</think>\nTherefore, option C is correct.", "C"),
        ("Choice **(C)** is the best answer.", "C"),
        ("**Answer:** (B)", "B"),
        ("Answer: **B) ten**", "B"),
        ("Answer: (d).", "D"),
        ("**Final Answer:** The correct option is **C**", "C"),
        ("Answer：C", "C"),
        (r"Answer: $\boxed{A}$", "A"),
        (r"\boxed{\textbf{(D)}}", "D"),
        (r"\boxed{C) 10^{-4}}", "C"),
        ("**Final Answer**\n\nThe final answer is: $\\boxed{C}$", "C"),
        (r"\boxed{\text{Option B}}", "B"),
        ("The answer must therefore be D.", "D"),
        ("**Final Answer**\n\n**B**", "B"),
        ("The answer is (B), not (C).", "B"),
        # a line that starts with "Answer:" counts before mentions in sentences
        ("Answer: B\n\n(Answer C is wrong because it is too high.)", "B"),
        ("**Answer: B**\n\nExplanation: Answer choice D fails to conserve energy.", "B"),
        ("> **Final Answer: B**\n\nIncorrect answer: C", "B"),
        # what follows </think> is the answer, where it states one
        ("<think>\nAnswer: B\n</think>\nThe correct answer is **C**.", "C"),
        ("Answer: B\n</think>\nThe answer is either C or D.", None),
        ("Answer: B\n</think>\nAnswer: A photon", None),
        ("The answer is B.\n</think>\nThe energy is 10 eV.", "B"),
        ("<think>\nAnswer: B\n</think>\n", "B"),
        # a letter without "answer: " before it
        ("**C**", "C"),
        ("Some hold that the answer is B.\n\n**C**", "C"),
        ("Answer C.", "C"),
        ("__Answer:__ C", "C"),
        (r"\boxed C", "C"),
        ("A) 1 eV\nB) 2 eV\nC) 3 eV\nD) 4 eV", None),
        ("D) fails to conserve energy", None),
        ("The answer is B.\nD) fails", "B"),
        ("C. elegans", None),
        # what follows the letter of a choice
        ("Answer: C, because energy is conserved", "C"),
        ("Answer: A photon", None),
        ("Answer: D-glucose", None),
        ("Answer: (E)-2-butene", None),
        ("Answer: B cells", None),
        ("Answer: C=O bond", None),
        (r"\boxed{D-glucose}", None),
        ("The answer is either C or D", None),
        ("The answer is B.\nThe answer is both C and D.", None),
        ("Answer: B\nAnswer: A photon", None),
        # what is refused is not chosen
        ("So the answer: A can be excluded", None),
        ("Answer: A (10 eV) is clearly ruled out", None),
        ("The answer is not B.", None),
        ("So answer A is incorrect", None),
        ("the wrong answer is C", None),
        ("Answer choice A: 10 eV, too low.\nAnswer choice B: 20 eV, too high.", None),
        # two letters are no choice
        ("Answer: B or C", None),
        ("Answer: (B) and (C)", None),
        ("Answer: B, C", None),
        (r"\boxed{A, B}", None),
        ("The answer is C.\nAnswer: B or D", None),
        # the last one counts
        (r"Answer: A, no: \boxed{B}", "B"),
        (r"\boxed{B}, no. Answer: A", "A"),
        # not one of the choices
        ("Answer: B, no. Answer: E", "E"),
        # no letter
        ("I found the answer. A photon has", None),
        ("Answer: $LETTER", None),
        ("the answer is a bit odd", None),
        (r"\boxed{C_6H_6}", None),
        (r"\boxed{D - 1}", None),
        (r"\boxed{10^{-4}}", None),
        ("", None),
    ],
)
def test_the_letter_stated_last(text: str, letter: str | None) -> None:
    assert last_letter(text) == letter


@pytest.mark.parametrize(
    "text",  # in none of which a judge or a reader would be sure without the question
    [
        "Answer: B, C is wrong", "Answer: A (10 eV) is clearly ruled out", "Answer: B – 10 eV", "C) 10 eV",
        "I choose C.", "<think>\nAnswer: B\n</think>\nSo C is right.",
    ],
)  # fmt: skip
def test_what_is_not_clear_is_left_to_a_judge(text: str) -> None:
    assert last_letter(text) is None


@pytest.mark.parametrize("text", ["C", "x\n\nC", "Answer C", "(C)"])
def test_the_last_line_of_what_was_cut_off_is_no_answer(text: str) -> None:
    assert last_letter(text) == "C"
    assert last_letter(text, finished=False) is None
