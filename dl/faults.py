"""What is wrong with one file of a data set."""

from config.errors import UserError


class DataFault(UserError):
    """An image or annotation that cannot be used; the message starts with the file's path."""
