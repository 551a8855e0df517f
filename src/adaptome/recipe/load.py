"""Reading recipes: YAML, `key=value` overrides, and errors that name the key, the file and the nearest key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from adaptome.core.errors import AdaptomeError, MethodError, RecipeError, did_you_mean, nearest
from adaptome.recipe.schema import MethodSection, Recipe
from adaptome.recipe.section import Section
from adaptome.recipe.shipped import shipped_recipe, shipped_recipes


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), validate: bool = True
) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, its content as a mapping, or the name of a recipe that comes with adaptome. A file goes
            before a recipe of its name; what has a folder or ends in .yaml is always a file.
        overrides: `key=value` strings with dotted keys, e.g. "training.epochs=2"; values are YAML. `method.` and a
            number of `methods.0.` both reach into the list of methods.
        validate: also check the task's options and the methods' settings against their registries.

    Raises:
        RecipeError: there is no such file or recipe, it cannot be read, or a key or value is not valid.
    """
    where = "the recipe" if isinstance(source, Mapping) else str(source)
    content = dict(source) if isinstance(source, Mapping) else _parse(_text(source), where)
    return _build(content, where, list(overrides), validate)


def recipe_from_yaml(text: str, where: str = "the recipe", validate: bool = False) -> Recipe:
    """The recipe written in `text`; see `load_recipe`."""
    return _build(_parse(text, where), where, [], validate)


def recipe_json_schema() -> dict[str, Any]:
    """The schema of recipes as JSON Schema, for editors; it admits `method:` for a single method."""
    schema = Recipe.model_json_schema()
    schema["properties"]["method"] = schema["properties"]["methods"]["items"]
    return schema


def validate_task(recipe: Recipe) -> None:
    """Check the task's name and options against the registered tasks.

    Raises:
        RecipeError: no such task, or an option it does not have or admit.
    """
    from adaptome.tasks import get_task

    get_task(recipe.task.name, **recipe.task.settings)


def validate_methods(recipe: Recipe) -> None:
    """Check every method's name and settings against the registered methods.

    Raises:
        RecipeError: no such method, or a setting it does not have or admit.
    """
    import adaptome as ad

    compared = recipe.compare.methods if recipe.compare else []
    sections: list[tuple[str, MethodSection]] = [
        *((f"methods.{number}", section) for number, section in enumerate(recipe.methods)),
        *((f"compare.methods.{number}", section) for number, section in enumerate(compared)),
    ]
    for key, section in sections:
        try:
            ad.get_method(section.name, **section.settings)
            for settings in section.per_layer.values():
                ad.get_method(section.name, **{**section.settings, **settings})
        except MethodError as error:
            raise RecipeError(f"{key}: {_with_sections(section, error)}") from error


def validate_objectives(recipe: Recipe) -> None:
    """Check every objective's name, settings and schedule against the registered objectives.

    Raises:
        RecipeError: no such objective, or a setting it does not have or admit.
    """
    from adaptome.objectives import terms_of

    terms_of(recipe.objective)


def validate_augmentation(recipe: Recipe) -> None:
    """Check the generator's name and settings against the registered generators.

    Raises:
        RecipeError: no such generator, or a setting that it does not have or admit.
    """
    from adaptome.blackbox.generators import get_generator

    if recipe.augmentation is not None:
        get_generator(recipe.augmentation.generator.name, **recipe.augmentation.generator.settings)


def _with_sections(section: MethodSection, error: AdaptomeError) -> str:
    """The method's complaint, and the recipe's own keys where the unknown setting is near one of them."""
    own = [k for k in type(section).model_fields if k != "name"]
    hints = {
        key: close[0]
        for key in section.settings
        if (close := nearest(key, own, 1)) and repr(key) in str(error)
    }
    return str(error) + "".join(f"\n  A recipe's key near {key!r}: {hint!r}." for key, hint in hints.items())


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-3 as a number, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _text(source: str | Path) -> str:
    """The file's text, or that of the recipe that comes with adaptome under this name."""
    path = Path(source)
    if path.name == str(source) and path.suffix not in (".yaml", ".yml") and not path.is_file():
        return shipped_recipe(path.name).text
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = sorted(p.name for p in path.parent.glob("[!.]*.y*ml")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, there) or (f" Recipes there: {', '.join(there[:8])}." if there else "")
        if path.stem in shipped_recipes():
            hint += (
                f"\n  A recipe of that name comes with adaptome: say {path.stem}, without folder and ending."
            )
        raise RecipeError(f"{path}: no such file.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(
            f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"{where}: a recipe is a mapping of sections ({_sections()}); found {found}.")
    return content


# --- overrides -------------------------------------------------------------------------------------------------------


def _override(content: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"override {text!r}: write key=value with a dotted key, e.g. training.epochs=2.")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not valid YAML.") from error
    parts = key.strip().split(".")
    if parts[0] == "method":
        parts = _method_path(content, parts, text)
    _set(content, parts, parsed, text)


def _method_path(content: dict[str, Any], parts: list[str], text: str) -> list[str]:
    """`method.r` means the only method."""
    methods = content.setdefault("methods", [])
    if len(parts) == 1:
        content["methods"] = []
        return ["methods", "0"]
    if isinstance(methods, list) and len(methods) > 1:
        names = ", ".join(f"methods.{i} ({_name_of(m)})" for i, m in enumerate(methods))
        raise RecipeError(f"override {text!r}: the recipe has {len(methods)} methods; say which: {names}.")
    return ["methods", "0", *parts[1:]]


def _name_of(section: Any) -> str:
    return str(section.get("name", "?")) if isinstance(section, dict) else str(section)


_SHORT = {"model": "name", "task": "name", "data": "name", "output": "folder"}


def _set(content: dict[str, Any], parts: list[str], value: Any, text: str) -> None:
    at: Any = content
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) > len(at):
                raise RecipeError(
                    f"override {text!r}: {'.'.join(parts[:depth])} is a list of {len(at)}; no entry {part!r}."
                )
            step: Any = int(part)
            if step == len(at):
                at.append({})
        elif isinstance(at, dict):
            step = part
        else:
            raise RecipeError(f"override {text!r}: {'.'.join(parts[:depth])} is {at!r}, which has no keys.")
        if last:
            at[step] = value
            return
        below = at[step] if isinstance(at, list) else at.get(step)
        if below is None:
            below = {}
        elif isinstance(below, str) and (
            depth == 0 or parts[:depth] == ["methods"]
        ):  # `task: x` is {name: x}
            below = {_SHORT.get(parts[0], "name"): below}
        at[step] = below
        at = below


# --- the schema's errors, with the key and the nearest one -----------------------------------------------------------


def _build(content: dict[str, Any], where: str, overrides: list[str], validate: bool) -> Recipe:
    content = _copy(content)
    if "method" in content:
        if "methods" in content:
            raise RecipeError(f"{where}: give either method or methods, not both.")
        content["methods"] = [content.pop("method")]
    for text in overrides:
        _override(content, text)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(_explain(error, where)) from error
    if validate:
        try:
            validate_task(recipe)
            validate_methods(recipe)
            validate_objectives(recipe)
            validate_augmentation(recipe)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    return recipe


def _copy(value: Any) -> Any:
    """A copy down to the leaves, so that overrides never write into the caller's mapping."""
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list | tuple) else value


def _explain(error: ValidationError, where: str) -> str:
    problems: dict[str, list[dict[str, Any]]] = {}
    for problem in error.errors():
        loc = _fields_of([str(part) for part in problem["loc"]])
        problems.setdefault(".".join(loc), []).append({**problem, "loc": loc})
    return f"{where}: " + "\n  ".join(_explain_one(key, found) for key, found in problems.items())


def _explain_one(key: str, problems: list[dict[str, Any]]) -> str:
    """One sentence on a key; several problems are the members of a union that did not fit."""
    first = problems[0]
    loc, kind, given = first["loc"], first["type"], first.get("input")
    if kind == "extra_forbidden":
        return f"unknown key {key!r}.{_near_key(loc)}"
    if kind == "missing":
        return f"{key!r} is missing.{_about(loc)}"
    if kind == "value_error":
        return f"{key or 'recipe'}: {first['ctx']['error']}."
    message = ", or ".join(p["msg"][0].lower() + p["msg"][1:] for p in problems)
    hint = did_you_mean(str(given), re.findall(r"'([^']+)'", message)) if kind == "literal_error" else ""
    return f"{key}={given!r}: {message}.{hint or _about(loc)}"


def _fields_of(loc: list[str]) -> list[str]:
    """A problem's place without what pydantic adds after the field: the member of a union that was tried."""
    here: type[Section] | None = Recipe
    for depth, part in enumerate(loc):
        if here is None:
            return loc[:depth]
        if part.isdigit():
            continue
        field = here.model_fields.get(part)
        here = next(_models_in(field.annotation), None) if field else None
    return loc


def _near_key(loc: list[str]) -> str:
    """The nearest valid key beside an unknown one, or the same key in another section."""
    parent = _section_at(loc[:-1])
    siblings = list(parent.model_fields) if parent else []
    elsewhere = [k for k in _dotted(Recipe) if k.rsplit(".", 1)[-1] == loc[-1]]
    if elsewhere:
        return f" Did you mean {elsewhere[0]!r}?"
    close = did_you_mean(loc[-1], siblings)
    if close:
        return close
    everywhere = {k.rsplit(".", 1)[-1]: k for k in _dotted(Recipe)}
    far = difflib.get_close_matches(loc[-1], everywhere, n=1, cutoff=0.7)
    if far:
        return f" Did you mean {everywhere[far[0]]!r}?"
    return f" Keys of {'.'.join(loc[:-1]) or 'a recipe'}: {', '.join(siblings)}."


def _about(loc: list[str]) -> str:
    parent = _section_at(loc[:-1])
    field = parent.model_fields.get(loc[-1]) if parent else None
    return f" ({field.description})" if field and field.description else ""


def _section_at(loc: list[str]) -> type[Section] | None:
    here: type[Section] | None = Recipe
    for part in loc:
        if here is None or part.isdigit():
            continue
        field = here.model_fields.get(part)
        here = next(_models_in(field.annotation), None) if field else None
    return here


def _models_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _dotted(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            if not issubclass(inner, MethodSection):
                yield from _dotted(inner, f"{prefix}{name}.")


def _sections() -> str:
    return ", ".join(Recipe.model_fields)
