"""The one exception that is the user's to mend: its message is the whole story, no traceback needed."""


class DictlabError(Exception):
    """A wrong file, option, model or text. The message names it, says what was found and expected, and what to do."""
