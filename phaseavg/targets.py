"""Check the parts of a config against their constructors, and build them.

A part is a mapping in the format of `hydra.utils.instantiate`: `_target_`, a class or function,
and its arguments. The signature of the target is the schema of the arguments. `build` calls
the target itself rather than through Hydra, because nested constructors also receive values that
only the program knows, such as the number of classes, and `_partial_` and `_args_` are refused.
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
from pydantic_core import to_jsonable_python

from phaseavg.errors import PartFailed, UserError, describe

Part = dict[str, Any]
"""A target and its arguments, as JSON; `build` converts them to the types in its signature."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Numbers must not be booleans, strings, NaN or infinite."""

RECORDED = (
    *("phaseavg.averaging", "phaseavg.data", "phaseavg.models", "phaseavg.optim"),
    *("phaseavg.phases", "torch.optim", "torchvision.models"),
)
"""Modules whose classes and functions a record may name; not those of their submodules, which may
load files that execute code."""

OWN = (*RECORDED, "timm")
"""Modules whose functions a user's config may name."""

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
    """Return whether a config value is a mapping with a `_target_`."""
    return isinstance(node, Mapping) and "_target_" in node


def _targets(node: Any) -> Iterator[str]:
    if is_part(node):
        yield str(node["_target_"])
    items = node.values() if isinstance(node, Mapping) else node
    if isinstance(node, Mapping | list):
        for item in items:
            yield from _targets(item)


def _is_within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def require_allowed(config: Any, extra: Iterable[str]) -> None:
    """Raise a UserError if a record has a target that is not directly in `RECORDED`, or in `extra`.

    Imports nothing.
    """
    for target in _targets(config):
        if target.rpartition(".")[0] not in RECORDED and not _is_within(target, extra):
            raise UserError(
                f"_target_={target}: a record may only name {', '.join(RECORDED)}; if you trust "
                "the target, add --allow MODULE"
            )


def import_target(target: str, path: str = "") -> Any:
    """Import the target of the part at `path` in the config.

    Raises:
        UserError: if the target does not exist.
        PartFailed: if importing its module fails.
    """
    module, _, name = target.rpartition(".")
    where = f"{path}._target_={target}"
    try:
        imported = import_module(module)
    except Exception as error:
        not_found = isinstance(error, ModuleNotFoundError) and _is_within(module, [error.name])
        if not_found or not module:
            raise UserError(f"{where}: {error}; must be MODULE.NAME") from error
        raise PartFailed(f"{where}: {describe(error)}") from error
    if not hasattr(imported, name):
        raise UserError(f"{where}: module {module!r} has no attribute {name!r}")
    return getattr(imported, name)


def _is_users(module: str) -> bool:
    """Return whether a module is not from the standard library, this package or site-packages."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or module.partition(".")[0] in (*sys.stdlib_module_names, "phaseavg"):
        return False
    return not {"site-packages", "dist-packages"} & {*Path(file).parts}


def _require_target(target: Any, where: str, kind: Any) -> None:
    """Raise a UserError if a target cannot create an object of its field's kind; calls nothing.

    Allowed are subclasses of `kind`, and functions that `OWN` or a user's module defines. A module
    that only imports a function does not count.
    """
    module = str(getattr(target, "__module__", None))
    if isinstance(target, type):
        allowed = module.partition(".")[0] not in sys.stdlib_module_names
        with suppress(TypeError):  # generics and other kinds without subclasses
            if kind not in (Any, inspect.Parameter.empty) and not issubclass(target, kind):
                names = getattr(kind, "__name__", kind)
                raise UserError(f"{where}: must create {names}, not {target.__name__}")
    else:
        allowed = _is_within(module, OWN) or _is_users(module)
    if not allowed:
        raise UserError(f"{where}: must be a class, or a function in your own module")


def unknown_message(field: str, names: Iterable[Any], what: str = "key") -> str:
    """Return the message about an unknown key or option, with the choices and the nearest match."""
    choices = [str(name) for name in names]
    name = field.rpartition("=" if "=" in field else ".")[2]
    nearest = get_close_matches(name, choices, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{field}: there is no such {what}; choices: {', '.join(choices) or 'none'}{hint}"


def validation_message(field: str, value: Any, error: Mapping[str, Any]) -> str:
    """Return the one-line message for an entry of pydantic's `ValidationError.errors()`."""
    reason = error["msg"].removeprefix("Value error, ")
    return f"{field}={value!r}: {reason[0].lower()}{reason[1:]}"


def signature(target: Any) -> inspect.Signature:
    """Return a target's signature; annotations that cannot be evaluated stay strings."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)


def _map_parts(value: Any, path: str, function: Callable[[Part, str], Any]) -> Any:
    """Return a copy of `value` with `function` applied to each part, however deeply nested."""
    if is_part(value):
        return function(value, path)
    if isinstance(value, Mapping):
        return {key: _map_parts(item, f"{path}.{key}", function) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_parts(v, f"{path}[{n}]", function) for n, v in enumerate(value)]
    return value


def _convert(value: Any, field: str, annotation: Any) -> Any:
    """Validate an argument against the annotation of its parameter and return it converted."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    adapter = TypeAdapter(annotation, config=STRICT)
    try:
        converted = adapter.validate_python(value)
    except ValidationError as python_error:
        try:  # strict mode converts JSON to paths, tuples, sets and enumerations
            converted = adapter.validate_json(json.dumps(value))
        except ValidationError as json_error:
            error = json_error if isinstance(value, list) else python_error
            raise UserError(validation_message(field, value, error.errors()[0])) from error
    # Iterable[…] yields an iterator, which could be read only once.
    return value if isinstance(converted, Iterator) else converted


def convert_part(part: Part, path: str, kind: Any = inspect.Parameter.empty) -> Part:
    """Validate a part against its target's signature and return it as JSON; calls nothing.

    Args:
        part: the target and its arguments.
        path: the part's field in the config.
        kind: the annotation of the field.

    Raises:
        UserError: if the target does not exist, is not of `kind`, or does not accept an argument.
        PartFailed: if importing its module fails.
    """
    target = import_target(str(part["_target_"]), path)
    _require_target(target, f"{path}._target_={part['_target_']}", kind)
    parameters = signature(target).parameters
    has_kwargs = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    converted = {"_target_": part["_target_"]}
    for name, value in part.items():
        field = f"{path}.{name}"
        if name == "_target_":
            continue
        # Hydra's keys, such as _partial_ and _args_, are not supported.
        if name not in parameters and (not has_kwargs or str(name).startswith("_")):
            raise UserError(unknown_message(field, parameters))
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if is_part(value):
            converted[name] = convert_part(value, field, annotation)
        elif any(_targets(value)):
            converted[name] = _map_parts(value, field, convert_part)
        else:
            converted[name] = _jsonable(_convert(value, field, annotation))
    return converted


def own_files(config: Any) -> dict[str, Path]:
    """Return the file of each user's own module that a config names, by module."""
    modules = {str(import_target(target).__module__) for target in _targets(config)}
    return {n: Path(str(sys.modules[n].__file__)) for n in sorted(modules) if _is_users(n)}


@cache
def _defaults(target: str) -> dict[str, str]:
    """Return the defaults of a target's arguments as JSON, by name.

    Defaults in a user's own module do not count: no version tells when they change.
    """
    parameters = signature(import_target(target)).parameters.values()
    if _is_users(target.rpartition(".")[0]):
        return {}
    return {p.name: _json(p.default) for p in parameters if p.default is not p.empty}


def _json(value: Any) -> str:
    return json.dumps(_jsonable(value), sort_keys=True)


def _jsonable(value: Any) -> Any:
    """Return a value as JSON; the order of a set is always the same."""
    value = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    return to_jsonable_python(value, fallback=repr)


def drop_defaults(part: Part, path: str = "") -> Part:
    """Return a part from `convert_part` without arguments that have their default value."""
    defaults = _defaults(str(part["_target_"]))
    return {
        name: _map_parts(value, f"{path}.{name}", drop_defaults)
        for name, value in part.items()
        if name == "_target_" or _json(value) != defaults.get(name)
    }


def build(
    name: str,
    part: Part,
    kind: type | None = None,
    *,
    offered: Mapping[str, Any] | None = None,
    **extra: Any,
) -> Any:
    """Build one part of a run and the parts nested in it.

    Args:
        name: the part's field in the config.
        part: a part that `convert_part` returned.
        kind: the required class; by default any.
        offered: arguments passed to the constructors, nested ones included, that have a parameter
            of this name.
        extra: further arguments of the outer constructor.

    Raises:
        UserError: if a constructor raises a ValueError, an argument is missing, the config sets an
            argument to another value than the program, or the result is not of `kind`.
        PartFailed: if a constructor raises any other error.
    """

    def build_inner(value: Part, path: str) -> Any:
        return build(path, value, offered=offered)

    target = import_target(part["_target_"], name)
    parameters = signature(target).parameters
    provided = {**(offered or {}), **extra}
    arguments = {}
    for key, value in part.items():
        if key in provided and value != provided[key]:
            raise UserError(
                f"{name}.{key}={value!r}: follows from the rest of the config; leave it out"
            )
        if any(_targets(value)):
            arguments[key] = _map_parts(value, f"{name}.{key}", build_inner)
        elif key != "_target_":
            annotation = (
                parameters[key].annotation if key in parameters else inspect.Parameter.empty
            )
            arguments[key] = _convert(value, f"{name}.{key}", annotation)
    arguments |= {key: provided[key] for key in provided if key in {*parameters, *extra}}
    try:
        signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    try:
        instance = target(**arguments)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    except (OSError, PartFailed):
        raise
    except Exception as error:
        raise PartFailed(f"{name}={part['_target_']}: {describe(error)}") from error
    if kind is not None and not isinstance(instance, kind):
        raise UserError(
            f"{name}._target_={part['_target_']}: must create {kind.__name__}, "
            f"not {type(instance).__name__}"
        )
    return instance
