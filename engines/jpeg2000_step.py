"""How coarsely a JPEG 2000 file was quantised, read from the packet headers of its code-stream (ITU-T T.800, annexes A, B and E).

Nothing is decoded: a packet's header says of each code-block how many bit-planes are empty and how many coding passes the file has of it. The
step of the subband and the bit-planes that are not there give the step that was left in effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LOOKED_AT_MAX = 200_000  # code-blocks, precincts and packets of a file
COMPONENTS_MAX = 32
SIZ, COD, COC, RGN, QCD, QCC, POC, PPM, PPT, SOT, SOD = (
    0xFF51, 0xFF52, 0xFF53, 0xFF5E, 0xFF5C, 0xFF5D, 0xFF5F, 0xFF60, 0xFF61, 0xFF90, 0xFF93,
)  # fmt: skip
NOT_READ = {COC, RGN, QCC, POC, PPM, PPT}  # markers of features that are not read here
SOP, EPH = b"\xff\x91", b"\xff\x92"
REVERSIBLE = 1
Data = bytes | memoryview
SEVERAL_SEGMENTS = 0x05  # code-block styles in which a code-block has more than one length in a packet
# L2 norms of the synthesis by level, of LL, of HL and LH, and of HH; T.800 does not give them, they follow from annex F. The last is doubled
# for every further level.
NORMS = {
    False: ((1.000, 1.965, 4.177, 8.403, 16.90), (2.022, 3.989, 8.355, 17.04, 34.27), (2.080, 3.865, 8.307, 17.18, 34.71)),
    True: ((1.000, 1.500, 2.750, 5.375, 10.68), (1.038, 1.592, 2.919, 5.703, 11.33), (0.7186, 0.9218, 1.586, 3.043, 6.019)),
}  # fmt: skip


class _NotRead(Exception):
    """The code-stream has a feature that is not read here, or ends early."""


@dataclass
class _Bits:
    """The bits of packet headers: the byte behind 0xFF has seven."""

    data: Data
    at: int
    _left: int = 0
    _byte: int = 0

    def bit(self) -> int:
        if not self._left:
            before = self._byte
            if self.at >= len(self.data):
                raise _NotRead
            self._byte = self.data[self.at]
            self.at += 1
            self._left = 7 if before == 0xFF else 8
        self._left -= 1
        return self._byte >> self._left & 1

    def number(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.bit()
        return value

    def align(self) -> None:
        """Go to the next whole byte."""
        if self._byte == 0xFF:
            self.at += 1
        self._left = self._byte = 0


class _TagTree:
    """A tag tree (annex B.10.2)."""

    def __init__(self, rows: int, cols: int) -> None:
        self._shapes = [(rows, cols)]
        while self._shapes[-1] != (1, 1):
            rows, cols = -(-rows // 2), -(-cols // 2)
            self._shapes.append((rows, cols))
        self._low = [[0] * (r * c) for r, c in self._shapes]
        self._known = [[False] * (r * c) for r, c in self._shapes]

    def below(self, bits: _Bits, row: int, col: int, threshold: int) -> bool:
        """Whether the value of a leaf is below a threshold."""
        low = 0
        for level in range(len(self._shapes) - 1, -1, -1):
            node = (row >> level) * self._shapes[level][1] + (col >> level)
            low = max(low, self._low[level][node])
            while low < threshold and not self._known[level][node]:
                if bits.bit():
                    self._known[level][node] = True
                else:
                    low += 1
            self._low[level][node] = low
        return low < threshold


@dataclass
class _Block:
    """A code-block: its area, and what the headers have said of it so far."""

    area: int
    empty_planes: int | None = None
    passes: int = 0
    length_bits: int = 3


@dataclass
class _Cells:
    """The code-blocks of one subband in one precinct."""

    rows: int
    cols: int
    blocks: list[_Block]
    planes: int  # magnitude bit-planes of the subband
    weight: float  # log2 of its step times the norm of its synthesis
    inclusion: _TagTree = field(init=False)
    empty: _TagTree = field(init=False)

    def __post_init__(self) -> None:
        if self.blocks:
            self.inclusion, self.empty = _TagTree(self.rows, self.cols), _TagTree(self.rows, self.cols)


@dataclass(frozen=True)
class _Style:
    """The main header."""

    size: tuple[int, ...]  # right, bottom, left and top edge; width, height, left and top of the tiles
    depth: int
    apart: tuple[tuple[int, int], ...]  # by component, columns and rows that a sample stands for
    marked: int
    order: int
    layers: int
    levels: int
    block: tuple[int, int]  # log2 of width and height of code-blocks
    reversible: bool
    precincts: tuple[tuple[int, int], ...]  # log2 of width and height by resolution
    guard: int
    steps: tuple[tuple[int, float], ...]  # exponent and log2 of the step by subband


def _number(data: Data, at: int, size: int) -> int:
    if at + size > len(data):
        raise _NotRead
    return int.from_bytes(data[at : at + size], "big")


def _style(segments: dict[int, bytes]) -> _Style:
    siz, cod, qcd = (segments.get(marker, b"") for marker in (SIZ, COD, QCD))
    size = tuple(_number(siz, 2 + 4 * i, 4) for i in range(8))
    count = _number(siz, 34, 2)
    apart = tuple((_number(siz, 37 + 3 * i, 1), _number(siz, 38 + 3 * i, 1)) for i in range(count))
    levels, block_style, depth = _number(cod, 5, 1), _number(cod, 8, 1), (_number(siz, 36, 1) & 127) + 1
    reversible = _number(cod, 9, 1) == REVERSIBLE
    if (
        block_style & SEVERAL_SEGMENTS or levels > 32 or not 0 < count <= COMPONENTS_MAX or min(min(pair) for pair in apart) < 1 or min(size[4:6]) < 1
    ):  # fmt: skip
        raise _NotRead
    marked = _number(cod, 0, 1)
    sizes = [_number(cod, 10 + r, 1) if marked & 1 else 0xFF for r in range(levels + 1)]
    kind = _number(qcd, 0, 1)
    steps = []
    for band in range(3 * levels + 1):
        if kind & 31 == 0:
            steps.append((_number(qcd, 1 + band, 1) >> 3, 0.0))
            continue
        number = _number(qcd, 1 + 2 * (band if kind & 31 == 2 else 0), 2)
        exponent = number >> 11
        if kind & 31 == 1:  # derived from that of LL
            exponent -= max(0, (band - 1) // 3)
        steps.append((exponent, depth - exponent + float(np.log2(1 + (number & 2047) / 2048))))
    return _Style(
        size, depth, apart, marked, _number(cod, 1, 1), _number(cod, 2, 2), levels,
        (_number(cod, 6, 1) + 2, _number(cod, 7, 1) + 2), reversible, tuple((s & 15, s >> 4) for s in sizes), kind >> 5, tuple(steps),
    )  # fmt: skip


def _norm(style: _Style, band: int, level: int) -> float:
    """The norm of a subband's synthesis; ``band`` is 0 for LL, 1 and 2 for HL and LH, 3 for HH, ``level`` counts from 0 at the finest."""
    row = NORMS[style.reversible][(0, 1, 1, 2)[band]]
    return row[level] if level < len(row) else float(row[-1] * 2 ** (level - len(row) + 1))


def _range_of(low: int, high: int, cell: int) -> range:
    return range(low >> cell, -(-high >> cell) if high > low else low >> cell)


@dataclass
class _Precinct:
    """A precinct of a component, which has one packet for each layer."""

    resolution: int
    component: int
    place: tuple[int, int]
    number: int
    cells: list[_Cells]


class _Budget:
    """How much of a file may still be looked at, so that a hostile one cannot take long."""

    def __init__(self) -> None:
        self._left = LOOKED_AT_MAX

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _NotRead


def _precincts(style: _Style, tile: tuple[int, ...], component: int, budget: _Budget) -> list[_Precinct]:
    """The precincts of a component of a tile (left, top, right, bottom)."""
    out: list[_Precinct] = []
    dx, dy = style.apart[component]
    edges = [-(-edge // apart) for edge, apart in zip(tile, (dx, dy, dx, dy), strict=True)]
    for r in range(style.levels + 1):
        shift = style.levels - r
        x0, y0, x1, y1 = (-(-e >> shift) for e in edges)
        px, py = style.precincts[r]
        if r and not (px and py):
            raise _NotRead
        rows, cols = _range_of(y0, y1, py), _range_of(x0, x1, px)
        budget.take(1 + len(rows) * len(cols))
        for row in rows:
            for col in cols:
                place = max(tile[1], (row << (py + shift)) * dy), max(tile[0], (col << (px + shift)) * dx)
                cells = [_cells(style, edges, r, band, (row, col), budget) for band in ((1, 2, 3) if r else (0,))]
                out.append(_Precinct(r, component, place, len(out), cells))
    return out


def _cells(
    style: _Style, edges: list[int], resolution: int, band: int, precinct: tuple[int, int], budget: _Budget
) -> _Cells:
    """The code-blocks of a subband in a precinct (row, column). ``band`` is 0 for LL, 1 for HL, 2 for LH and 3 for HH."""
    cut = 1 if resolution else 0
    level = style.levels - resolution + cut  # 1 is the finest
    half = (1 << level) >> 1
    sides = []
    for axis, odd in ((1, band >> 1), (0, band & 1)):  # rows, columns
        low, high = (-(-(e - half * odd) >> level) for e in (edges[axis], edges[axis + 2]))
        size = style.precincts[resolution][axis] - cut
        place = precinct[1 - axis]
        low, high = max(low, place << size), min(high, (place + 1) << size)
        cell = min(style.block[axis], size)
        found = _range_of(low, high, cell)
        budget.take(len(found))
        sides.append([min(high, (n + 1) << cell) - max(low, n << cell) for n in found])
    heights, widths = sides
    budget.take(len(heights) * len(widths))
    blocks = [_Block(height * width) for height in heights for width in widths]
    exponent, step = style.steps[3 * (resolution - 1) + band if resolution else 0]
    norm = _norm(style, band, level - 1 if resolution else level)
    return _Cells(len(heights), len(widths), blocks, style.guard + exponent - 1, step + float(np.log2(norm)))


def _passes(bits: _Bits) -> int:
    """The number of coding passes (table B.4)."""
    if not bits.bit():
        return 1
    if not bits.bit():
        return 2
    for length, first in ((2, 3), (5, 6)):
        value = bits.number(length)
        if value < (1 << length) - 1:
            return first + value
    return 37 + bits.number(7)


def _read_packet(data: Data, at: int, precinct: _Precinct, layer: int, marked: int) -> int:
    """Read the header of a packet that begins at a byte; where the next one begins."""
    if marked & 2 and data[at : at + 2] == SOP:
        at += 6
    bits, body = _Bits(data, at), 0
    if bits.bit():
        for cells in precinct.cells:
            for number, block in enumerate(cells.blocks):
                row, col = divmod(number, cells.cols)
                if block.empty_planes is not None:
                    included = bool(bits.bit())
                else:
                    included = cells.inclusion.below(bits, row, col, layer + 1)
                    if included:
                        planes = 0
                        while not cells.empty.below(bits, row, col, planes + 1):
                            planes += 1
                            if planes > cells.planes:
                                raise _NotRead
                        block.empty_planes = planes
                if included:
                    passes = _passes(bits)
                    while bits.bit():
                        block.length_bits += 1
                    if block.length_bits > 32:
                        raise _NotRead
                    body += bits.number(block.length_bits + passes.bit_length() - 1)
                    block.passes += passes
    bits.align()
    at = bits.at
    if marked & 4 and data[at : at + 2] == EPH:
        at += 2
    return at + body


def _packets(style: _Style, precincts: list[_Precinct], budget: _Budget) -> list[tuple[_Precinct, int]]:
    """The packets of a tile and their layers, in the order of the progression (annex B.12)."""
    keys = (
        lambda p, layer: (layer, p.resolution, p.component, p.number),
        lambda p, layer: (p.resolution, layer, p.component, p.number),
        lambda p, layer: (p.resolution, p.place, p.component, p.number, layer),
        lambda p, layer: (p.place, p.component, p.resolution, p.number, layer),
        lambda p, layer: (p.component, p.place, p.resolution, p.number, layer),
    )
    if style.order >= len(keys):
        raise _NotRead
    budget.take(style.layers * len(precincts))
    packets = [(p, layer) for p in precincts for layer in range(style.layers)]
    return sorted(packets, key=lambda found: keys[style.order](*found))


def _segments(data: Data) -> tuple[dict[int, bytes], int]:
    """The marker segments of the main header, and where the first tile-part begins."""
    at, found = 2, {}
    while (marker := _number(data, at, 2)) != SOT:
        length = _number(data, at + 2, 2)
        if marker in NOT_READ or length < 2:
            raise _NotRead
        found[marker] = bytes(data[at + 4 : at + 2 + length])
        at += 2 + length
    return found, at


def _tile_parts(data: Data, at: int) -> dict[int, Data]:
    """By tile, what its tile-parts hold."""
    found: dict[int, Data] = {}
    while at + 12 <= len(data) and _number(data, at, 2) == SOT:
        tile, length = _number(data, at + 4, 2), _number(data, at + 6, 4)
        stop = at + length if length else len(data)
        inner = at + 12
        while (marker := _number(data, inner, 2)) != SOD:
            if marker in NOT_READ | {COD, QCD}:
                raise _NotRead
            inner += 2 + max(2, _number(data, inner + 2, 2))
        part = data[inner + 2 : stop]
        found[tile] = b"".join((found[tile], part)) if tile in found else part
        at = max(stop, inner + 2)
    return found


def step_of(data: Data) -> float | None:
    """The step that was left in effect in the first component of a code-stream, in grey levels of an image of 8 bits: the geometric mean over
    the area of the code-blocks that the file has something of.

    None where that cannot be told: the code-stream ends early, has nothing, a tile of too many code-blocks, or a feature
    that is not read here (packed packet headers, changes of progression, coding styles of single components or tiles, several segments in
    a code-block).
    """
    try:
        segments, at = _segments(data)
        style = _style(segments)
        return _mean_step(style, _tile_parts(data, at))
    except (_NotRead, IndexError, ValueError, OverflowError):
        return None


def _mean_step(style: _Style, parts: dict[int, Data]) -> float | None:
    right, bottom, x0, y0, width, height, tile_x, tile_y = style.size
    across = -(-(right - tile_x) // width)
    budget = _Budget()
    total = area = 0.0
    for tile, data in parts.items():
        row, col = divmod(tile, across)
        edges = (
            max(tile_x + col * width, x0), max(tile_y + row * height, y0),
            min(tile_x + (col + 1) * width, right), min(tile_y + (row + 1) * height, bottom),
        )  # fmt: skip
        try:
            precincts = [p for c in range(len(style.apart)) for p in _precincts(style, edges, c, budget)]
            packets = _packets(style, precincts, budget)
        except _NotRead:
            if not area:
                raise
            break  # the tiles before tell enough
        at = 0
        for precinct, layer in packets:
            at = _read_packet(data, at, precinct, layer, style.marked)
        if not len(data) - 2 <= at <= len(data):  # a tile-part without a length has the end marker too
            raise _NotRead
        for precinct in precincts:
            for cells in precinct.cells if precinct.component == 0 else ():
                for block in cells.blocks:
                    if block.empty_planes is not None:
                        missing = max(0.0, cells.planes - block.empty_planes - (block.passes + 2) / 3)
                        total += block.area * (cells.weight + missing)
                        area += block.area
    return float(2 ** (total / area - (style.depth - 8))) if area else None
