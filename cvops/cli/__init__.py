"""The `cvops` command. `main` is the entry point; the commands are one file each, put together in `app.py`."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (None: that of the process) and returns the exit code: 0, or 2 with one line on stderr for
    anything the user can put right (a missing file, an unknown model, weights that do not fit)."""
    try:
        from cvops.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "cvops":
            raise
        print(f"cvops: the command line needs {error.name}: pip install 'cvops[cli]'", file=sys.stderr)
        return 2

    from cvops.cli.errors import UserError
    from cvops.data import ImageError
    from cvops.models import UnknownModelError, WeightsError

    try:
        app(args=None if arguments is None else list(arguments), prog_name="cvops")
    except (UserError, ImageError, UnknownModelError, WeightsError, FileNotFoundError) as error:
        print(f"cvops: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0
