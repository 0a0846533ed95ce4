"""Tables for terminals and in Markdown: what the tools share in printing them.

A table is a list of lines, each a dict of cells by title.
"""

import shutil
import textwrap
from itertools import zip_longest

LONGEST = 100  # characters of a cell in Markdown, as a note holds what is longer; of a line


def markdown(lines):
    """Return a table of lines, each a dict by title; notes below it hold what is too long."""
    notes = []
    short = [{title: shorten(str(cell), notes) for title, cell in line.items()} for line in lines]
    text = f"\n{markdown_rows(short)}\n"
    for number, note in enumerate(notes, 1):
        text += f"\nNote {number}: {note}\n"
    return text


def markdown_rows(lines):
    """Return a table of lines as they are, without a line break at its ends."""
    titles = list(lines[0])
    rows = [titles, ["---"] * len(titles)]
    for line in lines:
        rows.append([str(cell).replace("|", "\\|") for cell in line.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shorten(cell, notes):
    """Return a cell that is not too long, which may point to one of the notes."""
    if len(cell) <= LONGEST:
        return cell
    if cell not in notes:
        notes.append(cell)
    return textwrap.shorten(cell, LONGEST, placeholder=f" ... (note {notes.index(cell) + 1})")


def fitted(lines):
    """Return a table that fits the terminal: in columns, or else a block for each line."""
    width = shutil.get_terminal_size().columns
    rows = rows_of(lines)
    widths = column_widths(rows, width)
    if widths is None:
        return blocks(rows, width)
    return columns(rows, widths)


def prose(text, table):
    """Return a text; where tables are fitted to a terminal, with lines that fit it as well.

    Lines of four spaces and more are commands, and stay as they are.
    """
    if table is not fitted:
        return text
    width = shutil.get_terminal_size().columns
    return "\n\n".join(refilled(paragraph, width) for paragraph in text.split("\n\n"))


def refilled(paragraph, width):
    """Return a paragraph or list in lines of a width, unless it has no longer ones."""
    lines = paragraph.split("\n")
    if all(len(line) <= width for line in lines):
        return paragraph
    if not any(line.startswith(("- ", "    ")) for line in lines):
        before = "\n" if paragraph.startswith("\n") else ""
        after = "\n" if paragraph.endswith("\n") else ""
        return before + "\n".join(wrap(" ".join(lines).strip(), width)) + after
    found = []
    for line in lines:
        is_command = line.startswith("    ")
        found += [line] if is_command else wrap(line, width, subsequent_indent="  ")
    return "\n".join(found)


def rows_of(lines):
    """Return the titles of a table, then its cells."""
    return [list(lines[0]), *([str(cell) for cell in line.values()] for line in lines)]


def fits_in_columns(lines, table):
    """Tell whether a table that fitted or markdown prints has no longer lines than it should."""
    if table is fitted:
        return column_widths(rows_of(lines), shutil.get_terminal_size().columns) is not None
    return max(map(len, markdown_rows(lines).splitlines())) <= LONGEST


def turned(lines, table):
    """Return a table turned by a right angle, its columns numbered; several if one is too wide."""
    text = ""
    columns = []  # of the next table, each with its number
    for place, line in enumerate(lines, 1):
        more = [*columns, (place, line)]
        if columns and not fits_in_columns(turn(more), table):
            text += table(turn(columns))
            more = more[-1:]
        columns = more
    return text + table(turn(columns))


def turn(columns):
    """Return the lines of a table in which pairs of a title and a line are columns."""
    titles = list(columns[0][1])
    return [{"": title, **{str(place): line[title] for place, line in columns}} for title in titles]


def column_widths(rows, width):
    """Return widths of columns that fit beside each other without broken words, or None."""
    widths = []
    least = []
    for cells in zip(*rows, strict=True):
        words = " ".join(cells).split()
        widths.append(max(len(cell) for cell in cells))
        least.append(max((len(word) for word in words), default=0))
    gaps = 2 * (len(widths) - 1)
    while sum(widths) + gaps > width:
        wide = [place for place, size in enumerate(widths) if size > least[place]]
        if not wide:
            return None
        widths[max(wide, key=lambda place: widths[place])] -= 1
    return widths


def columns(rows, widths):
    """Return rows in columns of these widths, their cells wrapped."""
    text = ""
    for row in rows:
        cells = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            padded = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
            text += "  ".join(padded).rstrip() + "\n"
    return f"\n{text}"


def blocks(rows, width):
    """Return a block for every row, a line "title  cell" for every cell."""
    titles, *rows = rows
    indent = max(len(title) for title in titles) + 2
    text = ""
    for row in rows:
        text += "\n"
        for title, cell in zip(titles, row, strict=True):
            first, *more = wrap(cell, max(width - indent, 20))
            text += f"{title.ljust(indent)}{first}\n"
            for part in more:
                text += " " * indent + part + "\n"
    return text


def wrap(cell, width, **options):
    """Return the lines of a cell, at least one; options are those of textwrap."""
    options |= {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(cell, width, **options) or [""]


def number(x):
    """Write a return with three digits at least."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"
