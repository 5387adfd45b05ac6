"""Checks the ranges of items whose prompt the caller has expanded already.

Next: multimodal.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessera.errors import InvalidArgument
from tessera.items import MultimodalItem, PlaceholderRange


def check_ranges(
    ids: Sequence[int],
    items: Sequence[MultimodalItem],
    *,
    placeholder_of: Callable[[MultimodalItem], int],
    run_lengths: Callable[[MultimodalItem], Sequence[int]],
    placeholder_ids: frozenset[int],
) -> None:
    """Check that ranges and placeholder tokens cover each other exactly.

    Args:
        ids: the expanded prompt.
        items: ordered by first offset, each with ranges.
        placeholder_of: the token id that stands for an item.
        run_lengths: the lengths of an item's runs, in order.
        placeholder_ids: all token ids that stand for items.

    Raises:
        InvalidArgument: with the field's path.
    """
    end = covered = 0
    for i, item in enumerate(items):
        expected = list(run_lengths(item))
        if len(item.ranges) != len(expected):
            raise _invalid(
                f"The item has {len(expected)} ranges, not {len(item.ranges)}.",
                "RANGE_COUNT",
                f"items[{i}].ranges",
            )
        for j, (span, length) in enumerate(zip(item.ranges, expected, strict=True)):
            _check_range(ids, span, end, length, placeholder_of(item), f"items[{i}].ranges[{j}]")
            end = span.end
            covered += span.length
    _check_all_covered(ids, items, covered, placeholder_ids)


def _check_range(
    ids: Sequence[int], span: PlaceholderRange, previous_end: int, length: int, token_id: int, field: str
) -> None:
    where = f"Range [{span.offset}, {span.end})"
    if span.offset < 0 or span.length < 1 or span.end > len(ids):
        raise _invalid(f"{where} does not lie in the prompt of {len(ids)} tokens.", "RANGE_BOUNDS", field)
    if span.offset < previous_end:
        raise _invalid(f"{where} begins before the one before it ends.", "RANGE_ORDER", field)
    if span.length != length:
        raise _invalid(f"{where} has {span.length} tokens; the item gives {length}.", "RANGE_LENGTH", field)
    if ids[span.offset : span.end].count(token_id) != length:
        raise _invalid(f"{where} covers tokens other than the placeholder {token_id}.", "RANGE_TOKENS", field)


def _check_all_covered(
    ids: Sequence[int], items: Sequence[MultimodalItem], covered: int, placeholder_ids: frozenset[int]
) -> None:
    if sum(ids.count(token_id) for token_id in placeholder_ids) == covered:
        return
    inside = {position for item in items for span in item.ranges for position in range(span.offset, span.end)}
    stray = next(i for i, token in enumerate(ids) if token in placeholder_ids and i not in inside)
    raise _invalid(
        f"No item's range covers the placeholder at {stray}.", "PLACEHOLDER_UNCOVERED", f"token_ids.ids[{stray}]"
    )


def _invalid(message: str, reason: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason, field=field)
