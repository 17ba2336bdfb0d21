class UserError(Exception):
    """What the user can mend. Its text is one sentence: what was wrong, where, what would be right.

    Entry points print the sentence without a traceback and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
