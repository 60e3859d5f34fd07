"""The one error a user is meant to read."""


class TesseraeError(Exception):
    """Something the user can mend. The message is one sentence: what is wrong, where, and the remedy."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the sentence alone, and the pipeline knows it by that."""
        return [str(self)]
