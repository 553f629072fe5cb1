"""How the front end draws a node's inputs: which have a widget, in which order, with which extra values beside them."""

from __future__ import annotations

from typing import Any

WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "MARKDOWN"}
# Widgets whose saved form belongs to one front-end extension each.
FOREIGN_WIDGETS = {
    "COLOR", "IMAGEUPLOAD", "IMAGECOMPARE", "CHART", "GALLERIA", "TEXTAREA",
    "WEBCAM", "AUDIO_UI", "AUDIOUPLOAD", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION",
}  # fmt: skip
# Nodes to which a front-end extension adds widgets that the server knows nothing of.
FOREIGN_NODES = {
    "LoadImageOutput", "PreviewAny", "PreviewAudio", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "Preview3D",
    "SaveGLB",
}  # fmt: skip
UPLOADS = ("image_upload", "video_upload", "animated_image_upload")
EMPTY_DEFAULT = {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": "", "MARKDOWN": ""}


def options_of(spec: list[Any]) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 and spec[1] else {}


def socket_type(spec: list[Any]) -> str:
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def widget_type(name: str, spec: list[Any]) -> str | None:
    """The widget that the front end draws for an input, or None where it draws a bare socket."""
    options = options_of(spec)
    kind = options.get("widgetType") or socket_type(spec)
    if options.get("forceInput"):
        return None
    if kind in FOREIGN_WIDGETS or options.get("audio_upload"):
        raise ValueError(f"Input {name!r} has a widget of type {kind}, which only the front end can read.")
    return kind if kind in WIDGETS else None


def ordered_inputs(definition: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """A node's inputs as the front end orders them: required, then optional, each as `input_order` says."""
    ordered: list[tuple[str, list[Any]]] = []
    for group in ("required", "optional"):
        specs = definition["input"].get(group) or {}
        named = (definition.get("input_order") or {}).get(group) or []
        ordered += [(name, specs[name]) for name in [*named, *(n for n in specs if n not in named)] if name in specs]
    return ordered


def control_widgets(name: str, spec: list[Any]) -> int:
    """How many extra values follow: "control after generate", and for a combo also its filter."""
    kind, control = socket_type(spec), options_of(spec).get("control_after_generate")
    if kind == "INT":
        return int(bool(control if control is not None else name in ("seed", "noise_seed")))
    return 2 if kind == "COMBO" and control else 0


def default(spec: list[Any]) -> Any:
    options, kind = options_of(spec), socket_type(spec)
    if options.get("default") is not None:
        return options["default"]
    if kind == "COMBO":
        choices = spec[0] if isinstance(spec[0], list) else options.get("options") or []
        return choices[0] if choices else None
    return EMPTY_DEFAULT[kind]


def refuse_evaluated(where: str, name: str, value: Any, spec: list[Any]) -> None:
    """Text that the front end evaluates when it runs (random choices, comments, dates) cannot be converted."""
    if not isinstance(value, str):
        return
    if options_of(spec).get("dynamicPrompts") and any(mark in value for mark in ("{", "\\", "//", "/*")):
        raise ValueError(f"{where} has a random choice, an escape or a comment in its text: not supported.")
    if name == "filename_prefix" and "%" in value:
        raise ValueError(f"{where} has a %...% replacement in its text: not supported.")


def has_upload_button(spec: list[Any]) -> bool:
    """Whether the front end adds an upload button, which has a saved value but none in the prompt."""
    return any(options_of(spec).get(key) is True for key in UPLOADS)
