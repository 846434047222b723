"""Text from outside, such as names of files and tasks, made fit for one line of a terminal."""


def plain(text: str) -> str:
    """Put text on one line; what doesn't print, escape sequences too, becomes a question mark."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
