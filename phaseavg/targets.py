"""What a config's `_target_` may name, and the parts that are built of it.

A target is imported only from a module that its reader may use, and called only if it is known
beforehand to give the kind of object that its place takes.
"""

import inspect
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from phaseavg.errors import PartFailed, UserError
from phaseavg.runs.files import load_yaml, read_file

Part = dict[str, Any]
"""A target and its arguments, with the types of its constructor."""


STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""A number is a number: neither true nor "3", neither nan nor inf."""

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
    return not installed and not standard and file != __file__


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


def choices(names: Mapping[str, Any] | list[str]) -> str:
    """Return the names that a message offers."""
    return f"choices: {', '.join(names) or 'none'}"


def refused(field: str, value: Any, error: Mapping[str, Any]) -> str:
    """Return what pydantic has against a value, in one line."""
    if error["type"] == "value_error":  # raised here
        return f"{field}={value!r} {error['ctx']['error']}"
    if error["type"] == "literal_error":
        return f"{field}={value!r}; choices: {error['ctx']['expected']}"
    return f"{field}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


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


def _has_parts(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_part(value) or any(map(_has_parts, value.values()))
    return isinstance(value, list) and any(map(_has_parts, value))


def typed_part(part: Part, path: str, wanted: Any = inspect.Parameter.empty) -> Part:
    """Return a part with its target's arguments checked and converted by the target's signature.

    Nothing is called, and the target must be known to give what its place takes.

    Args:
        part: target and arguments.
        path: its place in the config.
        wanted: the annotation of its place.

    Raises:
        UserError: if the target is none, gives something else, or takes other arguments.
        PartFailed: if its module fails.
    """
    where = f"{path}._target_={part['_target_']}"
    target = located(str(part["_target_"]), path)
    try:
        known = signature(target)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    require_kind(target, where, wanted, known.return_annotation)
    parameters = known.parameters
    result = {"_target_": part["_target_"]}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in part.items():
        if name == "_target_":
            continue
        if name not in parameters and not takes_all:
            raise UserError(f"{path}.{name}: there is no such key; {choices(parameters)}")
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if is_part(value):
            result[name] = typed_part(value, f"{path}.{name}", annotation)
        elif _has_parts(value):  # what they are is seen once they are built
            result[name] = _with_parts(value, f"{path}.{name}", typed_part)
        elif annotation is inspect.Parameter.empty or isinstance(annotation, str):
            result[name] = value
        else:
            adapter = TypeAdapter(annotation, config=STRICT)
            try:
                if isinstance(value, list):  # as JSON has it: there, a tuple is one, too
                    found = adapter.validate_json(json.dumps(value))
                else:
                    found = adapter.validate_python(value)
                converted = adapter.dump_python(found)
                # Of an iterable only an iterator would be left, which is no value.
                result[name] = value if isinstance(converted, Iterator) else converted
            except ValidationError as error:
                raise UserError(refused(f"{path}.{name}", value, error.errors()[0])) from error
    return result


def build(
    name: str,
    part: Part,
    kind: type | None = None,
    *,
    offered: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Build one part of a run, and first those in it, from its config and what the program gives.

    Args:
        name: of the config group.
        part: target and arguments.
        kind: what it has to be an instance of; by default anything.
        offered: what its constructor, and those of the parts in it, get of it is what their
            signatures name.
        given: what its constructor gets in any case.

    Raises:
        UserError: if a constructor refuses a value, the config has another value than the program
            gives, or something else than is needed comes out.
        PartFailed: if a constructor fails in another way.
    """
    target = located(part["_target_"], name)
    parameters = signature(target).parameters
    known = {**(offered or {}), **given}
    for key in sorted(part.keys() & known.keys()):
        _require_equal(f"{name}.{key}", part[key], known[key])
    arguments = {key: value for key, value in known.items() if key in {*given, *parameters}}

    def built(inner: Part, path: str) -> Any:
        return build(path, inner, offered=offered)

    for key, value in part.items():
        if key == "_target_":
            continue
        arguments[key] = _with_parts(value, f"{name}.{key}", built)
        if is_part(value) and key in parameters:
            _require(f"{name}.{key}", value, arguments[key], parameters[key].annotation)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    try:
        made = target(**arguments)
    except ValueError as error:
        plain = {k: v for k, v in part.items() if k != "_target_" and not _has_parts(v)}
        shown = ", ".join(f"{key}={value}" for key, value in plain.items())
        message = str(error)
        where = "" if "=" in message else f" (given: {shown})"
        raise UserError(f"{name}: {message}{where}") from error
    except (OSError, PartFailed):
        raise
    except Exception as error:
        raise failed(f"{name}={part['_target_']}", error) from error
    if kind is not None:
        _require(name, part, made, kind)
    return made


def _require_equal(field: str, value: Any, known: Any) -> None:
    """Check that a value in the config is the one that the program gives for the same argument.

    Raises:
        UserError: if not, or if what the program gives is nothing that a config can hold.
    """
    if not isinstance(known, bool | int | float | str):
        raise UserError(f"{field}: follows from the rest of the config; leave it out")
    if (type(value), value) != (type(known), known):
        raise UserError(
            f"{field}={value!r}: must be {known!r}, which follows from the rest of the config; "
            "leave it out or make it equal"
        )


def _require(name: str, part: Part, made: Any, annotation: Any) -> None:
    """Check that what a part has become is what its place takes.

    Raises:
        UserError: if not.
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return
    try:
        TypeAdapter(annotation, config=STRICT).validate_python(made)
    except ValidationError as error:
        wanted = getattr(annotation, "__name__", annotation)
        raise UserError(
            f"{name}._target_={part['_target_']}: gives a {type(made).__name__}, not {wanted}"
        ) from error
