"""Check the parts of a config against their constructors, and build them.

A part is a mapping as `hydra.utils.instantiate` takes it: `_target_`, a class or function, and the
arguments to call it with. Here they are checked and converted by its signature first.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from phaseavg.errors import PartFailed, UserError, told

Part = dict[str, Any]
"""A target and its arguments, with the types of its constructor."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""A number is a number: neither true nor "3", neither nan nor inf."""

OWN = (
    *("phaseavg.averaging", "phaseavg.data", "phaseavg.models", "phaseavg.optim"),
    *("phaseavg.phases", "torch.optim", "torchvision.models", "timm"),
)
"""Modules whose classes and functions a record may name."""

KINDS = {
    "dataset": "phaseavg.data.DataSet",
    "model": "torch.nn.Module",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "phaseavg.phases.Schedule",
    "averaging": "phaseavg.averaging.Averager",
    "observers": "phaseavg.averaging.Averager",
    "tracking": "phaseavg.tracking.Tracking",
}
"""The class that each part of a config must be an instance of."""


def is_part(node: Any) -> bool:
    """Return whether a value of a config is a target with its arguments."""
    return isinstance(node, Mapping) and "_target_" in node


def _targets(node: Any) -> Iterator[str]:
    if is_part(node):
        yield str(node["_target_"])
    items = node.values() if isinstance(node, Mapping) else node
    if isinstance(node, Mapping | list):
        for item in items:
            yield from _targets(item)


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def require_allowed(config: Any, extra: Iterable[str]) -> None:
    """Raise a UserError if a record names targets beside `OWN` and `extra`. Imports nothing."""
    for target in _targets(config):
        if not _within(target, (*OWN, *extra)):
            raise UserError(
                f"_target_={target}: a record may only name {', '.join(OWN)} and what "
                "--allow MODULE adds"
            )


def located(target: str, path: str = "") -> Any:
    """Import the target of the part at `path` in its config.

    Raises:
        UserError: if the target does not exist.
        PartFailed: if importing its module fails.
    """
    module, _, name = target.rpartition(".")
    where = f"{path}._target_={target}"
    try:
        imported = import_module(module)
    except Exception as error:
        unknown_module = isinstance(error, ModuleNotFoundError) and _within(module, [error.name])
        if unknown_module or not module:
            raise UserError(f"{where}: {error}") from error
        raise PartFailed(f"{where}: {told(error)}") from error
    if not hasattr(imported, name):
        raise UserError(f"{where}: module {module!r} has no attribute {name!r}")
    return getattr(imported, name)


def _is_users(module: str) -> bool:
    """Return whether a module is neither Python's nor this project's nor installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or module.partition(".")[0] in (*sys.stdlib_module_names, "phaseavg"):
        return False
    return not {"site-packages", "dist-packages"} & {*Path(file).parts}


def _require_maker(target: Any, where: str, kind: Any) -> None:
    """Refuse, before it is called, a target that cannot make what its field takes.

    Allowed are classes of that kind, and functions of `OWN` or of the user's. Where a target is
    defined counts, not the module that it is named in.
    """
    module = str(getattr(target, "__module__", None))
    if isinstance(target, type):
        allowed = module.partition(".")[0] not in sys.stdlib_module_names
        with suppress(TypeError):  # of kinds that have no subclasses, such as a generic
            if kind not in (Any, inspect.Parameter.empty) and not issubclass(target, kind):
                names = getattr(kind, "__name__", kind)
                raise UserError(f"{where}: gives a {target.__name__}, not {names}")
    else:
        allowed = _within(module, OWN) or _is_users(module)
    if not allowed:
        raise UserError(f"{where}: must be a class, or a function of your own that calls it")


def unknown(field: str, names: Iterable[Any], what: str = "key") -> str:
    """Return the message about a key or option that does not exist, with the nearest that does."""
    choices = [str(name) for name in names]
    typed = field.rpartition("=" if "=" in field else ".")[2]
    nearest = get_close_matches(typed, choices, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{field}: there is no such {what}; choices: {', '.join(choices) or 'none'}{hint}"


def refused(field: str, value: Any, error: Mapping[str, Any]) -> str:
    """Return in one line why pydantic refuses a value: one of `ValidationError.errors()`."""
    reason = error["msg"].removeprefix("Value error, ")
    return f"{field}={value!r}: {reason[0].lower()}{reason[1:]}"


def signature(target: Any) -> inspect.Signature:
    """Return a target's signature; annotations that only a type checker can read stay strings."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)


def _with_parts(value: Any, path: str, function: Callable[[Part, str], Any]) -> Any:
    """Return `value` with `function` applied to each part in it, in lists and mappings too."""
    if is_part(value):
        return function(value, path)
    if isinstance(value, Mapping):
        return {key: _with_parts(item, f"{path}.{key}", function) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_parts(v, f"{path}[{n}]", function) for n, v in enumerate(value)]
    return value


def _typed(value: Any, field: str, annotation: Any) -> Any:
    """Return an argument checked and converted by the annotation of its parameter."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    adapter = TypeAdapter(annotation, config=STRICT)
    try:
        if isinstance(value, list):  # in JSON's strict mode, a list may become a tuple
            found = adapter.validate_json(json.dumps(value))
        else:
            found = adapter.validate_python(value)
    except ValidationError as error:
        raise UserError(refused(field, value, error.errors()[0])) from error
    return value if isinstance(found, Iterator) else found  # Iterable[…] gives an iterator


def typed_part(part: Part, path: str, kind: Any = inspect.Parameter.empty) -> Part:
    """Return a part with its arguments converted by its target's signature; calls nothing.

    Args:
        part: target and arguments.
        path: its field in the config.
        kind: annotation of the field.

    Raises:
        UserError: if the target does not exist, makes something else, or takes other arguments.
        PartFailed: if importing its module fails.
    """
    target = located(str(part["_target_"]), path)
    _require_maker(target, f"{path}._target_={part['_target_']}", kind)
    parameters = signature(target).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    checked = {"_target_": part["_target_"]}
    for name, value in part.items():
        field = f"{path}.{name}"
        if name == "_target_":
            continue
        # Hydra's own keys, such as _partial_ and _args_, mean nothing here.
        if name not in parameters and (not takes_all or str(name).startswith("_")):
            raise UserError(unknown(field, parameters))
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if is_part(value):
            checked[name] = typed_part(value, field, annotation)
        elif any(_targets(value)):
            checked[name] = _with_parts(value, field, typed_part)
        else:
            checked[name] = _typed(value, field, annotation)
    return checked


@cache
def _defaults(target: str) -> dict[str, str]:
    """Return the default of each of a target's arguments that has one, as JSON."""
    parameters = signature(located(target)).parameters.values()
    return {p.name: _json(p.default) for p in parameters if p.default is not p.empty}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def without_defaults(part: Part, path: str = "") -> Part:
    """Return a part from `typed_part` without the arguments that equal their defaults."""
    defaults = _defaults(str(part["_target_"]))
    return {
        name: _with_parts(value, f"{path}.{name}", without_defaults)
        for name, value in part.items()
        if name == "_target_" or _json(value) != defaults.get(name)
    }


def build(
    name: str,
    part: Part,
    kind: type | None = None,
    *,
    offered: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Build one part of a run, with the parts in it.

    Args:
        name: its field in the config.
        part: from `typed_part`.
        kind: class that it must be an instance of; by default any.
        offered: arguments for its constructor, and for those of the parts in it, as far as their
            signatures name them.
        given: further arguments of its constructor.

    Raises:
        UserError: if a constructor refuses a value, an argument is missing, the config has another
            value than the program gives, or the result is of another kind.
        PartFailed: if a constructor fails in another way.
    """

    def inner(value: Part, path: str) -> Any:
        return build(path, value, offered=offered)

    target = located(part["_target_"], name)
    parameters = signature(target).parameters
    program = {**(offered or {}), **given}
    arguments = {}
    for key, value in part.items():
        if key in program and value != program[key]:
            raise UserError(
                f"{name}.{key}={value!r}: follows from the rest of the config; leave it out"
            )
        if key != "_target_":
            arguments[key] = _with_parts(value, f"{name}.{key}", inner)
    arguments |= {key: program[key] for key in program if key in {*parameters, *given}}
    try:
        signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    try:
        made = target(**arguments)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    except (OSError, PartFailed):
        raise
    except Exception as error:
        raise PartFailed(f"{name}={part['_target_']}: {told(error)}") from error
    if kind is not None and not isinstance(made, kind):
        raise UserError(
            f"{name}._target_={part['_target_']}: gives a {type(made).__name__}, not "
            f"{kind.__name__}"
        )
    return made
