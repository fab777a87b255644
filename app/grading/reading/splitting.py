"""Tokens by brackets and separators: where a list, a relation or a set falls apart."""

from collections.abc import Callable

from app.grading.reading.lexer import Token

BRACKETS = {"(": ")", "[": "]", "\\{": "\\}", "⟨": "⟩"}
#: Signs that join statements.
LOGICAL = {"land": "and", "lor": "or"}
_OPENING = (*BRACKETS, "{", "⌊", "⌈")
_CLOSING = (*BRACKETS.values(), "}", "⌋", "⌉")


def split(tokens: list[Token], separates: Callable[[Token], bool]) -> list[list[Token]]:
    """The runs of tokens between separators outside brackets and environments."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += _depth_change(token)
        if depth == 0 and separates(token):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _depth_change(token: Token) -> int:
    if token.kind == "char":
        return (token.value in _OPENING) - (token.value in _CLOSING)
    return (token.value == "begin") - (token.value == "end") if token.kind == "command" else 0


def is_separator(token: Token) -> bool:
    """Whether a token stands between members of a list."""
    if token.kind == "char":
        return token.value in (",", ";")
    if token.kind == "command":
        return token.value in LOGICAL
    return token.kind in ("text", "word") and token.value.strip(" ,;.").lower() in ("and", "or", "")


def joints(tokens: list[Token]) -> set[str]:
    """The words that stand between the members of a list: "and", "or", or none."""
    found: set[str] = set()

    def note(token: Token) -> bool:
        if is_separator(token) and token.kind != "char":
            found.add(LOGICAL.get(token.value, token.value.strip(" ,;.").lower()))
        return False

    split(tokens, note)
    return found - {""}


def split_relations(tokens: list[Token]) -> tuple[list[list[Token]], list[str]]:
    """The sides of a relation and the signs between them."""
    signs: list[str] = []

    def separates(token: Token) -> bool:
        if token.kind == "relation":
            signs.append(token.value)
        return token.kind == "relation"

    return split(tokens, separates), signs


def walk_backwards(tokens: list[Token]) -> list[tuple[int, int]]:
    """(index, bracket depth) from the last token to the first."""
    depth, walk = 0, []
    for index in range(len(tokens) - 1, -1, -1):
        depth -= _depth_change(tokens[index])
        walk.append((index, depth))
    return walk


def closing_index(tokens: list[Token]) -> int:
    """The index of the bracket that closes the first token; any closing bracket closes any opening one."""
    depth = 0
    for index, token in enumerate(tokens):
        depth += _depth_change(token)
        if depth == 0:
            return index
    return -1


def group_end(tokens: list[Token], start: int) -> int:
    """Where the braced group, or else the single token, that begins at ``start`` ends."""
    if start < len(tokens) and tokens[start].value == "{":
        end = closing_index(tokens[start:])
        return len(tokens) if end < 0 else start + end + 1
    return min(start + 1, len(tokens))


def double_signs(tokens: list[Token]) -> list[int]:
    """Where ± and ∓ stand; those within a set belong to its members and are not among them."""
    places, in_sets = [], 0
    for index, token in enumerate(tokens):
        in_sets += (token.value == "\\{") - (token.value == "\\}")
        if in_sets == 0 and token.kind == "command" and token.value in ("pm", "mp"):
            places.append(index)
    return places


def spelled(tokens: list[Token]) -> str:
    """The tokens as text, where they are few enough for a numeral or a time."""
    return " ".join(token.value for token in tokens) if len(tokens) < 12 else ""


def significant_digits(tokens: list[Token]) -> tuple[int | None, int]:
    """How many digits a single decimal number is written with, and the place of the last; (None, 0) for others."""
    numbers = [token for token in tokens if token.kind == "number"]
    if not numbers or not numbers[0].decimal or any(token.kind in ("word", "text") for token in tokens):
        return None, 0
    power = 0
    if len(numbers) == 3 and numbers[1].value == "10" and [token.value for token in tokens if token.value == "^"]:
        power = int(numbers[2].value) if numbers[2].value.isdigit() and len(numbers[2].value) < 5 else 0
        power = -power if any(token.value == "-" for token in tokens[tokens.index(numbers[1]) :]) else power
    elif len(numbers) != 1 or any(token.kind == "command" or token.value in "/^!|" for token in tokens):
        return None, 0
    mantissa, _, exponent = numbers[0].value.lower().partition("e")
    fraction = mantissa.partition(".")[2]
    digits = mantissa.replace(".", "").lstrip("0")
    return len(digits), power + int(exponent or 0) - len(fraction)
