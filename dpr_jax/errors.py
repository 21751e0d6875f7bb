"""The exceptions that the command line turns into one line: what a user can repair, and a run that
was asked to stop.
"""


class InputError(ValueError):
    """Bad input: the message is one line that names what, where, the rule and the remedy.

    The command line prints it without a traceback and exits with status 2. Everything else that is
    raised is a bug and keeps its traceback.
    """


class Preempted(Exception):
    """The run was asked to stop and has saved what it had: the same command goes on from there.

    The command line prints it and exits with status 75, on which launchers should start the command
    again.
    """


class Busy(Exception):
    """Another process is writing what this one would write; the message names it.

    The command line prints it and exits with status 75: the command may be tried again.
    """
