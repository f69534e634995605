"""The one exception that a user's mistake raises, everywhere in segae."""


class SegaeError(Exception):
    """A problem that the user can mend.

    Its message is one paragraph: the value seen, the value wanted, and the next thing to type. The command
    line prints it without a traceback and leaves with exit code 2.
    """
