"""What the schemas of all nodes share: the mode, options nodes, and checks before a workflow runs.

In every node a number of 0 switches a thing off, and AUTO (-1) leaves it to the node; choices say "off" and "auto".
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from comfy_api.latest import io
from comfy_execution.validation import validate_node_input

from ..core.hooks.prompt import NO_ENCODER, text_encoders
from ..core.require import require

RECOMMENDED, PUBLISHED = MODES = ("recommended", "published")
AUTO, ON, OFF = "auto", "on", "off"
AUTO_NUMBER = -1

_Input = TypeVar("_Input", bound=io.Input)
_Execute = TypeVar("_Execute", bound=Callable[..., io.NodeOutput])


@dataclass(frozen=True)
class Options:
    """What an options node hands to the main nodes of its method: the values of its widgets, by name."""

    method: str
    values: MappingProxyType[str, Any]


def options_type(method: str) -> str:
    """The socket type of a method's options."""
    return f"DIVERSITY_{method.upper()}_OPTIONS"


def mode_input(published: str) -> io.Input:
    """The widget that chooses between our settings and the paper's; `published` says what that is for this method."""
    return io.Combo.Input(
        "mode",
        options=list(MODES),
        default=RECOMMENDED,
        tooltip=f'"recommended": settings chosen by measurement. "published": {published}',
    )


def optimiser_input(search: str, cost: str) -> io.Input:
    """The widget of an options node that chooses between gradients and a search; `search` says what that is for this
    method."""
    return advanced(
        io.Combo.Input(
            "optimiser",
            options=[AUTO, "gradient", "search"],
            default=AUTO,
            optional=True,
            tooltip=(
                f'"gradient": by gradients. "search": {search}. "auto": gradients, and search where one check finds '
                f"that none pass; the report then says so. {cost}."
            ),
        )
    )


def options_input(method: str, node_name: str) -> io.Input:
    """The optional socket of a main node."""
    return io.Custom(options_type(method)).Input(
        "options", optional=True, tooltip=f"More settings, from {node_name}. Sensible without it."
    )


def options_output(method: str, main_name: str) -> io.Output:
    """The output of an options node."""
    return io.Custom(options_type(method)).Output(display_name="options", tooltip=f"For the options of {main_name}.")


def checked(execute: _Execute) -> _Execute:
    """For a node's `execute`, below `@classmethod`: first raises ValueError for a widget's value that is not allowed.

    ComfyUI itself compares typed-in numbers with their limits, but NaN passes, and what another node gives is not
    looked at; whether it checks the choices of a node depends on its version.
    """
    signature = inspect.signature(execute)
    [*_, last] = signature.parameters.values()

    @functools.wraps(execute)
    def after_checks(cls: type[io.ComfyNode], *arguments: Any, **named: Any) -> io.NodeOutput:
        values = dict(signature.bind(cls, *arguments, **named).arguments)
        if last.kind is inspect.Parameter.VAR_KEYWORD:
            values |= values.pop(last.name, {})
        check_values(cls.define_schema(), values)
        return execute(cls, *arguments, **named)

    return after_checks  # pyrefly: ignore[bad-return] - its parameters are those of execute


def check_values(schema: io.Schema, values: Mapping[str, Any]) -> None:
    """Raises ValueError for the value of a widget that is no number of its range, choice, text or switch."""
    for widget in schema.inputs:
        if widget.id in values:
            given = values[widget.id]
            for value in given if schema.is_input_list and isinstance(given, list) else [given]:
                if value is not None or not widget.optional:
                    _check(widget, value)


def _check(widget: io.Input, value: Any) -> None:
    if isinstance(widget, io.Combo.Input):
        choices = [str(choice) for choice in widget.options or ()]
        require(value in choices, widget.id, value, f"one of {', '.join(choices)}")
    elif isinstance(widget, io.Int.Input | io.Float.Input):
        whole = isinstance(widget, io.Int.Input)
        low: Any = widget.min
        high: Any = widget.max
        # True is a number to Python.
        number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
        within = number and low <= value <= high  # not so for NaN
        allowed = f"a whole number from {low} to {high}" if whole else f"a number from {low:g} to {high:g}"
        require(within, widget.id, value, allowed)
    elif isinstance(widget, io.Boolean.Input):
        require(isinstance(value, bool), widget.id, value, "true or false")
    elif isinstance(widget, io.String.Input):
        require(isinstance(value, str), widget.id, value, "a text")


def check_clip(clip: Any) -> None:
    """Raises ValueError for no CLIP, and for one that only counts the tokens which the diffusion model reads itself."""
    if clip is None:
        raise ValueError("clip is empty: the checkpoint holds no text encoder. Use one from Load CLIP.")
    if not text_encoders(clip):
        raise ValueError(f"{NO_ENCODER} Diverse Noise and Diversify (Model Only) work without one.")


def make_options(method: str, values: dict[str, Any]) -> io.NodeOutput:
    """What an options node returns."""
    return io.NodeOutput(Options(method, MappingProxyType(dict(values))))


def read_options(cls: type[io.ComfyNode], options: Options | None) -> dict[str, Any]:
    """Values of the options, or the defaults of the options node `cls` where none is connected."""
    defaults = {widget.id: widget.default for widget in cls.define_schema().inputs if hasattr(widget, "default")}
    return defaults if options is None else {**defaults, **options.values}


class CheckedNode(io.ComfyNode):
    """A node with an `options` socket: says in plain words when something of another kind is connected to it."""

    @classmethod
    def validate_inputs(cls, input_types: dict[str, str]) -> bool | str:
        """Called before the workflow runs with the types of what is connected, in place of ComfyUI's own check."""
        schema = cls.define_schema()  # ComfyUI locks the class here, and GET_SCHEMA would write to it
        for widget in schema.inputs:
            received, expected = input_types.get(widget.id), widget.get_io_type()
            if received is None or validate_node_input(received, expected):
                continue
            if widget.id == "options" and received.endswith("_OPTIONS"):
                return (
                    f"options of {schema.display_name} is connected to another method's options node ({received}). "
                    f"Connect the options node whose output is {expected}, or none."
                )
            return f"{widget.id} of {schema.display_name} is connected to {received}; it must be {expected}."
        return True


def advanced(widget: _Input) -> _Input:
    """The same input, shown only when a user asks for advanced ones."""
    # Older versions of ComfyUI pass the flag on to the front end but have no parameter for it.
    if hasattr(widget, "advanced"):
        widget.advanced = True
    else:
        widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget
