"""A method has one set of defaults, whether it is called as a function or built as a class."""

import ast
import inspect

import pytest

import lightning_biaskd.distillers as distillers

CLASSES = {
    value.__module__: value
    for value in vars(distillers).values()
    if inspect.isclass(value) and value.__module__.startswith("lightning_biaskd.distillers.")
}
FUNCTIONS = [
    value
    for module in CLASSES
    for value in vars(inspect.getmodule(CLASSES[module])).values()
    if inspect.isfunction(value) and value.__module__ == module and not value.__name__.startswith("_")
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_function_and_its_class_agree(function):
    own = inspect.signature(function).parameters
    source = ast.parse(inspect.getsource(inspect.getmodule(function)))
    classes = [node.name for node in source.body if isinstance(node, ast.ClassDef)]
    named = function.__name__.removesuffix("_loss").replace("_", "")
    for title in [title for title in classes if title.lower() == named] or classes[:1]:
        theirs = inspect.signature(getattr(inspect.getmodule(function), title)).parameters
        for name in own.keys() & theirs.keys():
            defaults = {p[name].default for p in (own, theirs)} - {inspect.Parameter.empty, None}
            assert len(defaults) <= 1, f"{function.__name__} and {title} differ in {name}"
