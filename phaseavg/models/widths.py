"""The width factor that every network has."""


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded.

    Raises:
        ValueError: if less than one channel is left.
    """
    result = round(channels * width)
    if result < 1:
        raise ValueError(f"width={width} leaves none of {channels} channels; choose more")
    return result
