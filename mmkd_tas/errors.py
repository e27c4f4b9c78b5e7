"""The one exception for mistakes that the user can fix."""

import difflib
from collections.abc import Collection

# What the log and the tools point to where a distillation brings nothing.
NO_GAIN = 'docs/no-gain.md'


class SetupError(ValueError):
    """A config, checkpoint or data set that cannot work.

    Its message is one sentence: the key or file, what was found, and what to
    write instead. The tools print it alone, without a traceback.
    """


def suggest(name: str, known: Collection[str]) -> str:
    """Return ``'; did you mean ...?'`` with the closest names, or all if they are few."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f'; did you mean {" or ".join(map(repr, close))}?'
    return f'; there are {", ".join(sorted(known))}' if len(known) <= 12 else ''
