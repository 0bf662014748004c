"""The networks of the library timm, with random weights."""

from difflib import get_close_matches

from torch import nn


def timm_model(
    name: str, num_classes: int, in_channels: int = 3, image_size: int = 224
) -> nn.Module:
    """Return a network of timm by its name, one of `timm.list_models()`; no weights are loaded.

    A network that is made for one image size (its constructor takes `img_size`) gets the data's.

    Raises:
        ValueError: if timm has no such network.
    """
    import timm  # takes seconds, and a run with another network does not need it

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
