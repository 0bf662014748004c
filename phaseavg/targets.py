"""Check the parts of a config against their constructors, and build them.

A part is a mapping of `_target_`, a class or function, and of the arguments to call it with.
"""

import inspect
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import AnyNode
from pydantic import ConfigDict, TypeAdapter, ValidationError

from phaseavg.errors import PartFailed, UserError

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


def targets(node: Any) -> Iterator[str]:
    """Yield all targets in a config."""
    if is_part(node):
        yield str(node["_target_"])
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from targets(item)


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def require_allowed(config: Any, extra: Iterable[str]) -> None:
    """Check that a record names allowed targets only. Imports nothing.

    Args:
        config: as recorded.
        extra: modules or targets that are allowed beside `OWN`.

    Raises:
        UserError: if it names another.
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
        path: field of the part in its config, for messages.

    Raises:
        UserError: if the target does not exist or belongs to the standard library.
        PartFailed: if importing its module fails.
    """
    module, _, name = target.rpartition(".")
    where = f"{path}._target_={target}"
    if not module or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"{where}: must be a module, a dot, and the name of a class or function")
    if _is_standard(module):
        raise UserError(f"{where}: must not be of Python's standard library")
    try:
        found = import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and _within(module, [str(error.name)])
        raise (UserError(f"{where}: {error}") if missing else failed(where, error)) from error
    if not hasattr(found, name):
        raise UserError(f"{where}: module {module!r} has no attribute {name!r}")
    return getattr(found, name)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def failed(where: str, error: BaseException) -> PartFailed:
    """Return a `PartFailed` that names the file and line of the user's code that raised."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _is_own(frame.filename)]
        file, line = (own or frames)[-1][:2]
    reason = " ".join(str(error).split())
    return PartFailed(f"{where}: {file}, line {line}: {type(error).__name__}: {reason}")


def _is_own(file: str) -> bool:
    """Return whether a file is the user's: neither installed, nor Python's, nor this project's."""
    installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
    others = ("<", sysconfig.get_path("stdlib"), str(Path(__file__).parent))
    return not installed and not file.startswith(others)


def _file(module: str) -> str:
    """Return the file of an imported module; "<" if it has none."""
    return getattr(sys.modules.get(module), "__file__", None) or "<"


def _require_maker(target: Any, where: str, kind: Any) -> None:
    """Check, before a target is called, that it can make what its field takes.

    Args:
        target: from `located`, which may be of another module than it is named in.
        where: field and target, for messages.
        kind: annotation of the field.

    Raises:
        UserError: if it is neither a class of that kind nor a function of `OWN` or of the user's.
    """
    module = str(getattr(target, "__module__", None))
    if isinstance(target, type) and not _is_standard(module):
        with suppress(TypeError):  # of kinds that have no subclasses, such as a generic
            if kind not in (Any, inspect.Parameter.empty) and not issubclass(target, kind):
                names = getattr(kind, "__name__", kind)
                raise UserError(f"{where}: gives a {target.__name__}, not {names}")
    elif not (_within(module, OWN) or _is_own(_file(module))):
        raise UserError(f"{where}: must be a class, or a function of your own that calls it")


def unknown(field: str, names: Iterable[Any], what: str = "key") -> str:
    """Return the message about a key or option that does not exist, with the nearest that does."""
    choices = [str(name) for name in names]
    typed = field.rpartition("=" if "=" in field else ".")[2]
    nearest = get_close_matches(typed, choices, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{field}: there is no such {what}; choices: {', '.join(choices) or 'none'}{hint}"


def refused(field: str, value: Any, error: Mapping[str, Any]) -> str:
    """Return in one line why pydantic refuses a value."""
    if error["type"] == "value_error":  # raised by a validator of this project
        return f"{field}={value!r}: {error['ctx']['error']}"
    if error["type"] == "literal_error":
        return f"{field}={value!r}; choices: {error['ctx']['expected']}"
    return f"{field}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def signature(target: Any) -> inspect.Signature:
    """Return a target's signature; annotations that only a type checker can read stay strings.

    Raises:
        UserError: if it has none.
    """
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise UserError(f"_target_={target}: {error}") from error


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
    """Return a part with its arguments checked and converted by its target's signature.

    The target is imported, but not called.

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
        # Hydra's own keys, such as _partial_ and _args_, would change how the target is called.
        if name not in parameters and (not takes_all or str(name).startswith("_")):
            raise UserError(unknown(field, parameters))
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if is_part(value):
            checked[name] = typed_part(value, field, annotation)
        elif any(targets(value)):
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
    """Return a part without the arguments that equal its constructor's defaults.

    Args:
        part: from `typed_part`.
        path: its field in the config.
    """
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
    completed = _completed(part, name, offered or {}, given)
    try:
        made = instantiate({name: completed}, _convert_="all")[name]
    except InstantiationException as error:
        cause, field = error.__cause__, str(error).partition("\nfull_key: ")[2] or name
        if cause is None or isinstance(cause, ValueError):
            raise UserError(f"{field}: {cause or ' '.join(str(error).split())}") from error
        if isinstance(cause, OSError | PartFailed):
            raise cause from None
        raise failed(f"{field}={part['_target_']}", cause) from cause
    if kind is not None and not isinstance(made, kind):
        raise UserError(
            f"{name}._target_={part['_target_']}: gives a {type(made).__name__}, not "
            f"{kind.__name__}"
        )
    return made


def _completed(
    part: Part, path: str, offered: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a part, for `instantiate`, with the arguments that the program gives.

    Raises:
        UserError: if an argument is missing, or the config has another value for it.
    """
    known = signature(located(part["_target_"], path))
    program = {**offered, **given}
    for key in sorted(part.keys() & program.keys()):
        plain = isinstance(program[key], bool | int | float | str)
        if not plain or (type(part[key]), part[key]) != (type(program[key]), program[key]):
            rule = f"must be {program[key]!r}, which" if plain else "it"
            raise UserError(
                f"{path}.{key}={part[key]!r}: {rule} follows from the rest of the config; "
                "leave it out"
            )

    def inner(value: Part, field: str) -> dict[str, Any]:
        return _completed(value, field, offered, {})

    arguments = part | {key: program[key] for key in program if key in {*known.parameters, *given}}
    target = arguments.pop("_target_")
    try:
        known.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error
    for key, value in arguments.items():
        if key not in program and any(targets(value)):
            arguments[key] = _with_parts(value, f"{path}.{key}", inner)
        else:  # Hydra hands it on as it is: a tuple stays one, and nothing in a record is built
            arguments[key] = AnyNode(value, flags={"allow_objects": True})
    return {"_target_": target, **arguments}
