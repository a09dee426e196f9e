"""How a user's mistake is reported: one line on stderr, exit status 2."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake of the user's, in one line: what was wrong, what was expected, what to do."""


class NotSteered(RuntimeError):
    """Requests went through positions that were not steered: a defect, not a mistake of the user's."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known name nearest to `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Calls `main()`; a `UserError` becomes one line and exit status 2, Ctrl-C one line and status 130."""
    try:
        main()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
