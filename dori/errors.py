"""The one exception people are meant to read."""


class DoriError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do.

    The command line prints it as ``dori: <message>`` and exits with code 2; a notebook shows it as it is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def first_line(error: BaseException, length: int = 120) -> str:
    """The first line of another library's error for a message of ours, cut; its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:length]
