"""The one exception type for what a user can cause and repair."""


class InputError(ValueError):
    """Bad input: the message is one line that names what, where, the rule and the remedy.

    The command line prints it without a traceback and exits with status 2. Everything else that is raised is a bug and keeps its
    traceback.
    """
