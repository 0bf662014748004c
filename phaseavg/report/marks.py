"""Texts that a program keeps up to date between two marks of a file."""

import re

from phaseavg.errors import UserError


def between_marks(text: str, name: str, content: str, where: str = "README.md") -> str:
    """Return a text with what stands between two marks made anew.

    Args:
        text: of the file.
        name: of the marks, `<!-- name -->` and `<!-- /name -->`.
        content: what is to stand between them.
        where: the file, as a user would look for it.

    Raises:
        UserError: if the text has not each of them once.
    """
    marks = (f"<!-- {name} -->", f"<!-- /{name} -->")
    between = re.compile("(?<={}).*?(?={})".format(*map(re.escape, marks)), re.DOTALL)
    if len(between.findall(text)) != 1:
        raise UserError(f"{where}: must have {' and '.join(marks)} once")
    return between.sub(lambda _: f"\n\n{content}\n\n", text)
