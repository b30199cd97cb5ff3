"""The two errors a user can meet: one line that says what was expected, what was found and what to do."""


class AlmosaicError(ValueError):
    """A mistake that the user can mend; the command line prints it as one line and exits with status 2."""


class AudioError(AlmosaicError):
    """One clip that cannot be used; long jobs name it, count it and go on, single calls stop."""
