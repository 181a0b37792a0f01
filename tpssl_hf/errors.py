"""User-facing error, printed without a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence or two: what was given, what is allowed, how to mend it. Recipes print it without a
    traceback and exit with status 2; anything else that is raised is a bug and keeps its traceback.
    """
