"""Comma-separated text: a line is a sample, a column a channel, and each bad cell is named by row and column.

The first line decides the separator (tab, semicolon, comma, else blanks) and, where none of its cells is a number, is
a header. A first column that the header calls time is no channel: its steps, which must be even, give the rate.

Next: gateway/media/series/wav.py
"""

import csv
import io
import itertools
from array import array
from collections.abc import Iterator

import numpy as np

from gateway.media.options import ServerLimits
from gateway.media.problem import MediaProblem
from gateway.media.series.samples import RawSeries, check_size, too_large, unreadable

MAX_LINE_CHARS = 1 << 16
TIME_NAMES = frozenset({"time", "t", "time_s", "seconds", "sec"})
_MOST_UNEVEN = 0.01  # of a step, by which a time may be off
_MOST_SECONDS, _LEAST_STEP_S = 1e12, 1e-12
_SHOWN_CHARS = 20
_MOST = float(np.finfo(np.float32).max)

Row = tuple[int, list[str]]


def read_text(data: memoryview, limits: ServerLimits, rate_is_given: bool = False) -> RawSeries:
    """Read a text file of numbers.

    Args:
        data: the whole file, UTF-8.
        limits: the server's.
        rate_is_given: the caller gives the rate, so that a column of times is left out unread.

    Raises:
        MediaProblem: SERIES_UNREADABLE, SERIES_VALUE, SERIES_TIME, SERIES_SHAPE or SERIES_TOO_LARGE.
    """
    try:
        return _read(data, limits, rate_is_given)
    except UnicodeDecodeError as error:
        raise unreadable("it is text, but not UTF-8.") from error
    except csv.Error as error:
        raise unreadable("a quoted cell does not end.") from error


def _read(data: memoryview, limits: ServerLimits, rate_is_given: bool) -> RawSeries:
    lines = _Lines(data)
    line = next(iter(lines), None)
    if line is None:
        raise MediaProblem("The series has no samples.", reason="SERIES_SHAPE", field="media")
    separator = next((char for char in "\t;," if char in line.strip(" ")), None)
    rows = _rows(line, lines, separator)
    first: Row | None = next(rows)
    header: list[str] = []
    if first and not any(_is_number(cell) for cell in first[1]):
        # Blanks may stand in the name of a single column.
        by_cells = separator or first[1][0].lower() in TIME_NAMES
        header, first = [cell.strip() for cell in first[1]] if by_cells else [line.strip()], None
    has_time = bool(header) and header[0].strip("\"'").lower() in TIME_NAMES
    table = _Table(header, 1 if has_time else 0, not rate_is_given, limits)
    for number, cells in itertools.chain([first] if first else [], rows):
        table.add(number, cells)
    return table.series()


class _Lines:
    """The lines of a text that are neither empty nor comments, numbered as an editor does."""

    def __init__(self, data: memoryview) -> None:
        self._file = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=None)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE_CHARS + 1):
            self.number += 1
            if len(line) > MAX_LINE_CHARS:
                message = f"Line {self.number} of the series has more than {MAX_LINE_CHARS} characters."
                raise MediaProblem(f"{message} A line is one sample.", reason="SERIES_SHAPE", field="media")
            if line.strip() and not line.lstrip().startswith("#"):
                yield line


def _rows(first: str, lines: _Lines, separator: str | None) -> Iterator[Row]:
    """Yield (line number, cells); no separator = blanks."""
    all_lines = itertools.chain([first], lines)
    if separator is None:
        for line in all_lines:
            yield lines.number, line.split()
        return
    for cells in csv.reader(all_lines, delimiter=separator, strict=True, skipinitialspace=True):
        yield lines.number, cells


class _Table:
    """Takes rows of cells and keeps their numbers."""

    def __init__(self, header: list[str], first_channel: int, reads_time: bool, limits: ServerLimits) -> None:
        self._header, self._first, self._limits = header, first_channel, limits
        self._reads_time = bool(first_channel) and reads_time
        self._columns = len(header)
        self._blank_header = len(header) == 1
        self._values, self._times = array("d"), array("d")

    def add(self, number: int, cells: list[str]) -> None:
        """Take a row.

        Raises:
            MediaProblem: it has other columns than the first, a cell that is no finite number, or is one too many.
        """
        if len(cells) != self._columns:
            if self._columns and not self._blank_header:
                message = f"Row {number} of the series has {len(cells)} columns, the first has {self._columns}."
                raise MediaProblem(message, reason="SERIES_SHAPE", field="media")
            self._columns, self._blank_header = len(cells), False
        if not self._values:
            check_size(1, self._columns - self._first, self._limits)
        try:
            values = list(map(float, cells[self._first :]))
            if self._reads_time:
                self._times.append(float(cells[0]))
        except ValueError:
            values = [float("nan")]
        # NaN and infinity make the sum so; a bad cell is looked for only where it is not small.
        if not sum(map(abs, values)) < _MOST or "_" in "".join(cells):
            self._check_cells(number, cells)
        self._values.extend(values)
        if len(self._values) > self._limits.max_series_samples:
            raise too_large(self._limits)

    def _check_cells(self, number: int, cells: list[str]) -> None:
        first = 0 if self._reads_time else self._first
        for column, cell in enumerate(cells[first:], first):
            if not _is_number(cell) or not abs(float(cell)) <= _MOST:
                shown = cell.strip()[:_SHOWN_CHARS]
                what = f"is {shown!r}, not a finite float32" if shown else "is empty"
                named = column < len(self._header)
                name = f" ({self._header[column][:_SHOWN_CHARS]!r})" if named else ""
                message = f"Row {number}, column {column + 1}{name} of the series {what}."
                raise MediaProblem(message, reason="SERIES_VALUE", field="media")

    def series(self) -> RawSeries:
        """Return what was read.

        Raises:
            MediaProblem: SERIES_SHAPE: no rows; SERIES_TIME.
        """
        if not self._values:
            raise MediaProblem("The series has no samples.", reason="SERIES_SHAPE", field="media")
        samples = np.frombuffer(self._values, np.float64).reshape(-1, self._columns - self._first)
        return RawSeries(samples, _rate(self._times))


def _rate(times: "array[float]") -> float:
    """Samples a second, from their times; 0 where there are none to tell."""
    if len(times) < 2:
        return 0.0
    seconds = np.frombuffer(times, np.float64)
    step = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if (np.abs(seconds) < _MOST_SECONDS).all() else 0.0
    even = seconds[0] + step * np.arange(len(seconds)) if step >= _LEAST_STEP_S else None
    if even is None or np.abs(seconds - even).max() > _MOST_UNEVEN * step:
        message = "The column of times does not ascend in even steps; resample the series, or give its rate."
        raise MediaProblem(message, reason="SERIES_TIME", field="media")
    return float(1 / step)


def _is_number(cell: str) -> bool:
    if "_" in cell:  # Python's own spelling
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
