"""Text of others, as people may see it.

A payer's reference, a node's reason or what a stranger sends may hold line breaks and what terminals obey: printed as
it is, it could draw a receipt that nobody made, or hide one. So whatever is not printable is shown as its escape.
Programs get it as it is (`--json`).
"""


def shown(text: str) -> str:
    """`text` on one line, what is not printable as escapes (`\\n`, `\\x1b`, `\\u202e`)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: str) -> str:
    """The same between quotes, so that everybody sees where it ends: a quote in it is escaped, and a backslash."""
    return '"' + shown(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
