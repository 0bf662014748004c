"""The width factor that every network has."""

MOST = 1 << 14  # channels: weights, gradients and momentum of such networks fill the largest GPUs


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded.

    Raises:
        ValueError: if less than one channel is left, or a layer would have more than `MOST`.
    """
    result = round(channels * width)
    if result < 1:
        raise ValueError(f"width={width} leaves none of {channels} channels; choose more")
    if result > MOST:
        raise ValueError(f"width={width} makes over {MOST:,} of {channels} channels; choose less")
    return result
