"""The one way in which the build fails for a reason that a user can remove."""


class BuildError(SystemExit):
    """Says what is wrong, what was expected, what was found, and what to do.

    A SystemExit, so that pip shows these four lines and no traceback of setuptools below them.
    """

    def __init__(self, what, *, expected, got, remedy):
        self.what = what
        super().__init__(
            f"\nmaspo_ext: cannot build: {what}\n"
            f"  expected: {expected}\n"
            f"  got:      {got}\n"
            f"  remedy:   {remedy}"
        )
