"""The exceptions that segae raises for what a user can mend."""


class SegaeError(ValueError):
    """An argument, a file or a setting that cannot be used; the message names it and says what to do."""


class DataError(SegaeError):
    """A data set, an image or a mask that cannot be used."""


class CheckpointError(SegaeError):
    """A weight or resume file that is missing, damaged or of another kind."""


class OutOfMemoryError(SegaeError):
    """The memory of the device or of the machine is full."""
