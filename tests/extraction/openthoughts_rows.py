"""Records in the schema of OpenThoughts-114k."""

from typing import Any


def openthoughts_row(index: int, domain: str, *, test_cases: str, starter_code: str | None = None) -> dict[str, Any]:
    """A well-formed record; the last two arguments are for records of the domain `code` alone."""
    return {
        "conversations": [{"from": "user", "value": f"problem {index}"}],
        "problem": f"problem {index}",
        "deepseek_reasoning": f"Wait, {index}",
        "deepseek_solution": f"so {index}",
        "domain": domain,
        "test_cases": test_cases if domain == "code" else None,
        "starter_code": starter_code if domain == "code" else None,
    }
