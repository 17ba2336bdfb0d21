class UserError(Exception):
    """What the user can mend. Its text is one sentence: what was wrong, where, what would be right.

    Entry points print the sentence without a traceback and exit with status 2.
    """
