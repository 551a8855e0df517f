"""`adaptome advise`: will it fit, and how long will it take."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome advise recipe.yaml

adaptome advise recipe.yaml --methods lora,dora,mos --precision fp32,bf16,nf4

adaptome advise guanaco-qlora model.name=llama-3-8b --device a100-80g --length 1024

adaptome advise recipe.yaml training.batch_size=4 --steps 0 --json

adaptome advise --devices"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("advise", epilog=EXAMPLES)(advise)


def advise(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or the name of a recipe that comes with adaptome.",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, as training.batch_size=4."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Advise on these on their own targets, not the recipe's."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Trained numbers of each: 20000, 0.1% of the base, or lora:r=8.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="fp32, mixed (autocast to bf16), bf16 (base and activations), nf4 (the base in 4 bits, the rest in bf16); default: the recipe's.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="One of --devices, such as h100-80g; default: this machine.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of made-up samples: neither data nor tokenizer is read.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Real steps of each case on this machine; 0: count only.")
    ] = 3,
    devices: Annotated[
        bool, typer.Option("--devices", help="List the devices that are known, and stop.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Tell whether a recipe's training fits a device and how long it takes, for each method and precision."""
    if devices:
        _list(json)
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe, or list the devices with --devices.", param_hint="RECIPE")
    from adaptome.compare.advice import advise as foretell
    from adaptome.recipe import load_recipe

    said = [*(changes or [])]
    if methods:
        said.append(f"compare.methods=[{methods}]")
    if budget is not None:
        said.append(f"compare.budget={budget!r}" if methods else f"method.budget={budget!r}")
    wanted = [name.strip() for name in (precision or "").split(",") if name.strip()]
    found = foretell(
        load_recipe(recipe, said), wanted, device, steps=steps, length=length, tell=lambda line: print(line, file=sys.stderr)
    ).to_dict()  # fmt: skip
    if json:
        print_json(found)
    else:
        _show(found)


def _list(json: bool) -> None:
    from adaptome.compare.devices import DEVICES

    if json:
        print_json([device.to_dict() for device in DEVICES.values()])
        return
    rows = [
        (
            name, f"{one.memory / 2**30:.0f}", f"{one.bandwidth / 1e9:,.0f}", _tera(one.rates.get("bfloat16")), _tera(one.rates.get("float16")),
            _tera(one.rates["float32"]), one.source,
        )
        for name, one in DEVICES.items()
    ]  # fmt: skip
    print_table(
        ("device", "GiB", "GB/s", "bf16 TFLOP/s", "fp16", "fp32", "source"), rows, title="without sparsity"
    )


def _tera(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e12:,.4g}"


def _show(found: dict[str, Any]) -> None:
    device, cases = found["device"], found["cases"]
    title = f"{device['name']}: {device['memory'] / 2**30:,.1f} GiB; {device['source']}"
    rows = [
        (
            case["label"], case["precision"], case["verdict"], _gib(case["memory"]["total"]), _gib(case["memory"]["weights"] + case["memory"]["adapter"]),
            _gib(case["memory"]["optimizer"] + case["memory"]["gradients"]), _gib(case["memory"]["activations"]), case["trainable"],
            _time(case["step_seconds"]), "-" if case["seconds"] is None else _time(case["seconds"] + case["evaluating"]),
        )
        for case in cases
    ]  # fmt: skip
    print_table(
        ("method", "as", "verdict", "GiB", "weights", "states", "kept", "trained", "a step", "in all"), rows, title=title
    )  # fmt: skip
    for case in cases:
        for change in case["changes"]:
            wanted = " ".join(f"{key}={_value(value)}" for key, value in change["settings"].items())
            print(f"{case['label']}, {case['precision']} would fit with {wanted}: {_gib(change['total'])} GiB, {_time(change['step_seconds'])} a step")  # fmt: skip
        if case["verdict"] == "does not fit" and not case["changes"]:
            print(f"{case['label']}, {case['precision']}: no smaller batch, recomputing or 4-bit base makes it fit; take a smaller base, shorter samples or a larger device.")  # fmt: skip
    print(f"\n{_behind(found)}")


def _behind(found: dict[str, Any]) -> str:
    """How the figures came about, and what else is lighter."""
    cases, device = found["cases"], found["device"]
    fitting = [case for case in cases if case["verdict"] != "does not fit"]
    keys = "weights: with the adapter's; states: gradients and optimizer; kept: for the backward."
    told = f"{keys} Memory is counted on shapes, for the largest batch."
    if any(case["measured"] for case in cases):
        told = f"{keys} Memory is counted on shapes, for the largest batch; {cases[0]['measured'] or 'some'} real steps of each that fits correct memory and time."
    else:
        told += f" Time assumes {device['matmul']:.0%} of the rate and {device['copying']:.0%} of the bandwidth; nothing was run."  # fmt: skip
    if fitting and len(fitting) < len(cases):
        least = min(fitting, key=lambda case: case["memory"]["total"])
        told += f" The lightest that fits: {least['label']}, {least['precision']}."
    return told


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"


def _time(seconds: float) -> str:
    """Like 35 ms, 1.5 s, 3m20s, 6h25m."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
