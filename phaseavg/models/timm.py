"""Networks of the library timm, randomly initialised."""

from difflib import get_close_matches

from torch import nn


def timm_model(
    name: str, num_classes: int, in_channels: int = 3, image_size: int = 224
) -> nn.Module:
    """Return a randomly initialised timm network by its name in `timm.list_models()`.

    Networks with a fixed image size (an argument `img_size`) are built for `image_size`.

    Raises:
        ValueError: if timm has no network of this name.
    """
    import timm  # the import takes seconds; other networks do not need it

    names = timm.list_models()
    if name not in names:
        close = get_close_matches(name, names, n=5, cutoff=0.5)
        raise ValueError(
            f"name={name!r}: timm has no such model; choices: "
            f"{', '.join(close or ['resnet18', 'convnext_atto'])}, … (timm.list_models())"
        )
    options = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
    try:
        return timm.create_model(name, **options, img_size=image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)
