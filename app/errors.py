"""The one error that the command line turns into a single line and exit code 2."""


class ConfigurationError(ValueError):
    """A setting, file or row that cannot work; the message says what is wrong, where, and what to do.

    Args:
        message: one line.
        key: the dotted configuration key to blame, such as ``model.objective.lam``, where one is known.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
