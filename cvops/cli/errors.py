"""The error that ends a command with one line and exit code 2."""


class UserError(Exception):
    """Something the user can put right; its text is all that is shown."""
