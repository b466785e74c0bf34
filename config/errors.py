"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake the user can mend: the message names what, where and the way out.

    `mars.py` prints it as one sentence on stderr and leaves with status 2, without a traceback.
    """


class UnknownField(UserError, AttributeError):
    """A config field that does not exist; also an AttributeError, so that `hasattr` answers."""
