"""Which keypoints change places in a mirrored image, as far as their names tell.

The usual spellings are "left_eye", "Left Eye", "leftEye", "L_Eye", "eye_l", "leye", and corners and
wheels such as "bl" and "br". Nothing here needs TensorFlow.
"""

import re
from collections.abc import Iterable, Sequence

_WORDS = {"left": "right", "right": "left", "左": "右", "右": "左"}
_LETTERS = {"l": "r", "r": "l"}
# What stands beside l or r in a word of two letters: back, bottom, front, hind, lower, middle,
# rear, top, upper.
_PLACES = "bfhlmrtu"
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


def find_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs the names that differ by their side alone.

    Args:
        names: of the keypoints, different from one another.

    Returns:
        Pairs of positions in `names`, ascending. A name with several possible partners has none.
    """
    tokens = [_tokens(name) for name in names]
    partners = {}
    for find in (_swap_words, _swap_tokens, _swap_corners, _swap_ends):
        # Sure spellings first, so that a bold one cannot take their names.
        free = [position for position in range(len(names)) if position not in partners]
        found = {}
        for position in free:
            mirrored = find(tokens[position])
            candidates = [p for p in free if p != position and tokens[p] in mirrored]
            if len(candidates) == 1:
                found[position] = candidates[0]
        partners |= {a: b for a, b in found.items() if found.get(b) == a}
    return sorted((a, b) for a, b in partners.items() if a < b)


def find_one_sided(names: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Returns the names that state a side and are in no pair."""
    paired = {position for pair in pairs for position in pair}
    return [
        name
        for position, name in enumerate(names)
        if position not in paired and _states_side(_tokens(name))
    ]


def states_side_in_words(name: str) -> bool:
    """Whether a name says "left" or "right" in full."""
    return bool(_swap_words(_tokens(name)))


def mirrored_name(name: str) -> str:
    """A name with "left" and "right" exchanged, in its own case."""

    def swap(match):
        word = match[0]
        other = _WORDS[word.lower()]
        return other.upper() if word.isupper() else other.title() if word.istitle() else other

    return re.sub("|".join(_WORDS), swap, name, flags=re.IGNORECASE)


def read_pairs(stated: Sequence[str], names: Sequence[str]) -> list[tuple[int, int]]:
    """Reads what a user states.

    Args:
        stated: "NAME:NAME" each.
        names: of the keypoints.

    Raises:
        ValueError: if a name is none of them, is stated twice, or a pair is none.
    """
    pairs, used = [], set()
    for text in stated:
        pair = tuple(part.strip() for part in text.split(":"))
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(
                f"flip_pairs: {text!r} is no pair; write NAME:NAME, such as L_Eye:R_Eye"
            )
        for name in pair:
            if name not in names:
                raise ValueError(
                    f"flip_pairs: there is no keypoint {name!r}; there are {', '.join(names)}"
                )
            if name in used:
                raise ValueError(f"flip_pairs: {name!r} is in two pairs")
            used.add(name)
        pairs.append(tuple(sorted(names.index(name) for name in pair)))
    return pairs


def summary_line(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    """Says in one line what was paired, and what looks one-sided."""
    paired = ", ".join(f"{names[a]} and {names[b]}" for a, b in pairs) or "none"
    line = f"keypoints that change places in a mirrored image: {paired}"
    one_sided = find_one_sided(names, pairs)
    if one_sided:
        line += (
            f"; one-sided by their names, but without a partner: {', '.join(one_sided)} (state "
            "pairs by --flip_pairs=NAME:NAME,...)"
        )
    return line


def _tokens(name):
    return tuple(token.lower() for token in _TOKEN.findall(name))


def _swap_words(tokens):
    """The mirrored name as a set of one, empty where no word states a side."""
    pattern = "|".join(_WORDS)
    swapped = tuple(re.sub(pattern, lambda m: _WORDS[m[0]], token) for token in tokens)
    return {swapped} if swapped != tokens else set()


def _swap_tokens(tokens):
    swapped = tuple(_LETTERS.get(token, token) for token in tokens)
    return {swapped} if swapped != tokens else set()


def _swap_corners(tokens):
    return {
        mirrored
        for position, token in enumerate(tokens)
        if len(token) == 2 and set(token) <= set(_PLACES)
        for mirrored in _swap_letter(tokens, position, (0, 1))
    }


def _swap_ends(tokens):
    return {
        mirrored
        for position, token in enumerate(tokens)
        if len(token) > 2
        for mirrored in _swap_letter(tokens, position, (0, len(token) - 1))
    }


def _swap_letter(tokens, position, places):
    """Yields the tokens with l and r exchanged at one of some places of a token."""
    token = tokens[position]
    for place in places:
        if token[place] in _LETTERS:
            swapped = token[:place] + _LETTERS[token[place]] + token[place + 1 :]
            yield (*tokens[:position], swapped, *tokens[position + 1 :])


def _states_side(tokens):
    # Not the letters of a longer word: most words with one state no side.
    return bool(_swap_words(tokens) or _swap_tokens(tokens) or _swap_corners(tokens))
