"""The one exception for mistakes that the user can mend."""


class SetupError(ValueError):
    """A config, checkpoint or data set that cannot work.

    Its message is one sentence: the key or file, what was found, and what to
    write instead. The tools print it alone, without a traceback.
    """
