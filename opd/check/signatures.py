"""What the source of a method declares, its knobs above all. Importing it would import torch, which takes longer than
everything else that a refusal does; only what cannot be read from the source is taken from the imported method.
"""

import ast
import builtins
import importlib
import importlib.util
import inspect
from functools import cache
from pathlib import Path
from typing import Any

# A name of a module's top level: what is defined or assigned there, or (module, name) for what is imported.
Declared = ast.stmt | ast.expr | tuple[str, str]


class NotInSource(Exception):
    """A declaration that is not understood from its source."""


def knobs(target: str) -> list[str]:
    """The keyword-only parameters of the function or class with this dotted name, in order."""
    try:
        return [parameter.arg for parameter in _definition(target).args.kwonlyargs]
    except NotInSource:
        return [each.name for each in _parameters(target).values() if each.kind is each.KEYWORD_ONLY]


def kind(target: str, knob: str) -> Any:
    """The type that a knob is declared with."""
    try:
        parameters = {each.arg: each.annotation for each in _definition(target).args.kwonlyargs}
        return _evaluate(parameters[knob], target.rpartition(".")[0])
    except NotInSource:
        return _parameters(target)[knob].annotation


def trait(target: str, name: str) -> Any:
    """What a decorator of the method was given as `name`; null where it was not."""
    try:
        arguments = [
            word for each in _definition(target).decorator_list if isinstance(each, ast.Call) for word in each.keywords
        ]
        if any(word.arg is None for word in arguments):
            raise NotInSource
        values = [_evaluate(word.value, target.rpartition(".")[0]) for word in arguments if word.arg == name]
        return values[0] if values else None
    except NotInSource:
        return getattr(imported(target), name)


def returns(target: str) -> str:
    """The name of the type that it is annotated to return."""
    return ast.unparse(_definition(target).returns or ast.Constant(None)).rpartition(".")[2]


def decorated(module: str, decorator: str) -> list[str]:
    """The functions of a module that a call of `decorator` decorates, in order."""
    return [
        name
        for name, declaration in _declared(module).items()
        if isinstance(declaration, ast.FunctionDef)
        and any(
            isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == decorator
            for each in declaration.decorator_list
        )
    ]


def exists(target: str) -> bool:
    """Whether there is something of this dotted name."""
    try:
        return hasattr(importlib.import_module(target.rpartition(".")[0]), target.rpartition(".")[2])
    except ModuleNotFoundError:
        return False


def imported(target: str) -> Any:
    """The method itself."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _parameters(target: str) -> Any:
    return inspect.signature(imported(target)).parameters


def _definition(target: str) -> ast.FunctionDef:
    module, _, name = target.rpartition(".")
    declaration = _declared(module).get(name)
    if isinstance(declaration, ast.ClassDef):
        declaration = next((each for each in declaration.body if getattr(each, "name", None) == "__init__"), None)
    if not isinstance(declaration, ast.FunctionDef):
        raise NotInSource
    return declaration


@cache
def _declared(module: str) -> dict[str, Declared]:
    """The names of a module's top level."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise NotInSource
    declared: dict[str, Declared] = {}
    for statement in ast.parse(Path(spec.origin).read_text()).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                declared[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                declared[name] = value
            case ast.ImportFrom(module=str(source), names=names, level=0):
                declared |= {each.asname or each.name: (source, each.name) for each in names}
    return declared


def _resolve_name(name: str, module: str) -> Any:
    match _declared(module).get(name):
        case None if hasattr(builtins, name):
            return getattr(builtins, name)
        case (source, original):
            ours = source.partition(".")[0] == module.partition(".")[0]
            return _resolve_name(original, source) if ours else getattr(importlib.import_module(source), original)
        case ast.expr() as value:
            return _evaluate(value, module)
    raise NotInSource


def _evaluate(node: ast.expr | None, module: str) -> Any:
    """A type, or a constraint on one, as written in the source of `module`: `Annotated[int, Ge(1)] | None`."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _resolve_name(name, module)
        case ast.Tuple(elts=each):
            return tuple(_evaluate(one, module) for one in each)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _evaluate(left, module) | _evaluate(right, module)
        case ast.Subscript(value=generic, slice=inner):
            return _evaluate(generic, module)[_evaluate(inner, module)]
        case ast.Call(func=function, args=arguments, keywords=words) if all(word.arg for word in words):
            named = {str(word.arg): _evaluate(word.value, module) for word in words}
            return _evaluate(function, module)(*(_evaluate(one, module) for one in arguments), **named)
    raise NotInSource
