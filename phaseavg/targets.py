"""What a config's `_target_` may name, and what it names.

A target is imported only from a module that its reader may use, and called only if it is known
beforehand to give the kind of object that its place takes.
"""

import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from phaseavg.errors import PartFailed, UserError
from phaseavg.runs.files import load_yaml, read_file

OWN = ("phaseavg", "torch.optim", "torchvision", "timm")
"""Modules that a record may name."""

FACTORIES = ("torchvision.models", "timm.models")
"""Modules of others whose functions make networks, also where they do not say so."""

KINDS = {
    "dataset": "phaseavg.data.DataSet",
    "model": "torch.nn.Module",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "phaseavg.phases.Schedule",
    "averaging": "phaseavg.averaging.Averager",
    "watch": "phaseavg.averaging.Averager",
    "tracking": "phaseavg.tracking.Tracking",
}
"""What the part in each place of a config has to be."""


def is_part(node: Any) -> bool:
    """Return whether a value of a config is a target with its arguments."""
    return isinstance(node, Mapping) and "_target_" in node


def targets(node: Any) -> Iterator[str]:
    """Yield all that a config names to be imported."""
    if is_part(node):
        yield str(node["_target_"])
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from targets(item)


def option_targets(conf: Path) -> set[str]:
    """Return what the options in a folder of configs name."""
    options = [load_yaml(read_file(path)) for path in sorted(conf.rglob("*.yaml"))]
    return set(targets(options))


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def require_allowed(config: Any, extra: Iterable[str]) -> None:
    """Check that a record names nothing but the project's own parts.

    Args:
        config: as recorded.
        extra: modules or targets that its reader has named beside `OWN`.

    Raises:
        UserError: if it does.
    """
    for target in targets(config):
        if not _within(target, (*OWN, *extra)):
            raise UserError(
                f"_target_={target}: a record may only name {', '.join(OWN)} and what "
                "--allow MODULE adds"
            )


def located(target: str, path: str = "") -> Any:
    """Import a target.

    Args:
        target: module, a dot, and the name of a class or function in it.
        path: of the part in its config, for messages.

    Raises:
        UserError: if there is no such target, or it is the standard library's.
        PartFailed: if its module fails.
    """
    module, _, name = target.rpartition(".")
    where = f"{path}._target_={target}"
    if not module or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"{where}: must be a module, a dot, and the name of a part in it")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{where}: is of Python's own library, which has no such part")
    try:
        found = import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and _within(module, [str(error.name)]):
            raise UserError(f"{where}: {error}") from error
        raise failed(where, error) from error
    if not hasattr(found, name):
        raise UserError(f"{where}: module {module!r} has no attribute {name!r}")
    return getattr(found, name)


def failed(where: str, error: Exception) -> PartFailed:
    """Return what is said of a user's own part that raises, with the line of their file."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _is_own(frame.filename)]
        file, line = (own or frames)[-1][:2]
    reason = " ".join(str(error).split())
    return PartFailed(f"{where}: {file}, line {line}: {type(error).__name__}: {reason}")


def _is_own(file: str) -> bool:
    """Return whether a file is neither installed nor this one, which calls the others."""
    installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
    standard = file.startswith(("<", sysconfig.get_path("stdlib"))) and not installed
    return not installed and not standard and file not in (__file__, str(_CONFIG))


_CONFIG = Path(__file__).with_name("config.py")


def kinds_of(annotation: Any) -> tuple[type, ...]:
    """Return the classes that an annotation stands for; none if it leaves that open."""
    if get_origin(annotation) in (Union, UnionType):
        members = [kinds_of(member) for member in get_args(annotation) if member is not NoneType]
        return sum(members, ()) if all(members) else ()
    open_ = (Any, object, NoneType, inspect.Signature.empty)
    return (annotation,) if isinstance(annotation, type) and annotation not in open_ else ()


def require_kind(target: Any, where: str, wanted: Any, returned: Any) -> None:
    """Check before a target is called that it gives what its place takes.

    Args:
        target: from `located`.
        where: the target and its place, for messages.
        wanted: the annotation of its place.
        returned: what its signature says that it returns.

    Raises:
        UserError: if it does not.
    """
    module = str(getattr(target, "__module__", None))
    if module.partition(".")[0] in sys.stdlib_module_names or not callable(target):
        raise UserError(f"{where}: is neither a class nor a function that makes such a part")
    kinds = kinds_of(wanted)
    made = (target,) if isinstance(target, type) else kinds_of(returned)
    if (
        made
        and kinds
        and not any(
            _fits(one, kind) or (one is not target and _fits(kind, one))  # says less than it gives
            for one in made
            for kind in kinds
        )
    ):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{where}: gives a {made[0].__name__}, not {names}")
    if isinstance(target, type) or (made and kinds):
        return
    file = getattr(sys.modules.get(module), "__file__", None) or "<"
    trusted = _within(module, FACTORIES) or _is_own(file)
    if not trusted or returned in (None, NoneType):
        raise UserError(
            f"{where}: does not say what it returns; call it in a class or function of your own"
        )


def _fits(made: type, kind: type) -> bool:
    """Return whether objects of a class are of a kind, as far as the class tells."""
    if getattr(kind, "_is_protocol", False):
        methods = [name for name, value in vars(kind).items() if inspect.isfunction(value)]
        return all(hasattr(made, name) for name in methods if not name.startswith("_"))
    return issubclass(made, kind)
