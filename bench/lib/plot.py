"""Bar charts as SVG: a bar is the median, its whisker goes from min to max."""
from xml.sax.saxutils import escape

import figures

WIDTH, LABEL, BAR, GAP, TOP = 760, 250, 18, 8, 34
COLOURS = ("#31688e", "#b5651d")


def ours(name):
    return name.startswith(("resting", "working", "outbox"))


def nice(value):
    if value >= 10000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def bars(title, rows):
    """rows: [(name, values)]; returns the SVG"""
    height = TOP + len(rows) * (BAR + GAP) + GAP
    largest = max(max(values) for _, values in rows) or 1
    scale = (WIDTH - LABEL - 90) / largest

    # a latency can be below zero
    def x(value):
        return LABEL + max(value, 0) * scale

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
           ' font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
           f'<text x="{GAP}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>']
    for i, (name, values) in enumerate(rows):
        y = TOP + i * (BAR + GAP)
        middle = y + BAR / 2
        low, high = x(min(values)), x(max(values))
        out += [
            f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{x(figures.median(values)) - LABEL:.1f}"'
            f' height="{BAR}" fill="{COLOURS[0 if ours(name) else 1]}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
            f'M{high:.1f} {middle - 4}v8" stroke="black" fill="none"/>',
            f'<text x="{high + 6:.1f}" y="{middle + 4}">{nice(figures.median(values))}</text>']
    return "\n".join(out + ["</svg>", ""])
