"""The exceptions that the command line turns into one line: what a user can repair, and a run that
was asked to stop.
"""

import errno

USER_ERROR = 2
RUN_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
REFUSED_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


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
    """Something is in the way that passes: another process writes what this one would write, or a
    connection broke; the message names it.

    The command line prints it and exits with status 75: the command may be tried again.
    """


class OtherProcessFailed(Exception):
    """Another process of this run, by default process 0, ended with an error or did not come.

    Attributes:
      status: the exit status of the other process, with which this process ends too.
    """

    def __init__(
        self, status: int, line: str = "process 0 ended with an error, which its log names"
    ) -> None:
        super().__init__(line)
        self.status = status


def exit_status(error: BaseException) -> int:
    """Returns the exit status of an error: 2 bad input, 75 to be tried again, 1 any other."""
    if isinstance(error, OtherProcessFailed):
        return error.status
    if isinstance(error, Preempted | Busy):
        return RUN_AGAIN
    if isinstance(error, InputError) or is_refused_writing(error):
        return USER_ERROR
    return 1


def is_refused_writing(error: BaseException) -> bool:
    """Returns whether the system refused to write a file: read-only, no rights, or no room."""
    return isinstance(error, OSError) and error.errno in REFUSED_WRITING
