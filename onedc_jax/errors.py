"""What can go wrong by a user's doing. Each message is one line: what, where, what to do."""


class OneDCError(ValueError):
    """Anything that the user can mend; the command line prints it and exits with 2."""


class StreamError(OneDCError):
    """A compressed file that is damaged, foreign, of another version or of another model."""


class ModelError(OneDCError):
    """A model, configuration or weight file that is missing, incomplete or of another shape."""


class ImageError(OneDCError):
    """An image file that cannot be read or written, or pixels of a wrong type or shape."""


def one_line(error: BaseException) -> str:
    """What an exception of others says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
