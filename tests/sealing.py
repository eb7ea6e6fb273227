"""Result files that were changed, with and without the digest at their end set right again."""

from pathlib import Path

from retrograd.whole import whole


def seal_again(path: str | Path) -> None:
    """Seals a file that netCDF4 opened for writing, which cuts the seal off."""
    content = Path(path).read_bytes()
    with whole(path, sealed=True) as place:
        place.write_bytes(content)


def flip(path: str | Path, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(Path(path).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    Path(path).write_bytes(content)
