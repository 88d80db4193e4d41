"""`tune`, `steer`, `diff`, `merge` and `capture`: the verbs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from monochord.cli.app import app
from monochord.cli.output import Json, examples, print_json, table

Model = Annotated[str, typer.Argument(help="Catalog name, Hugging Face id or folder")]


@app.command(
    epilog=examples(
        "monochord tune minilm --method lora --out runs/mine",
        "monochord tune ./my-model --data reviews.csv --method 'dora(rank=4)' --steps 300 --out runs/mine",
        "monochord tune smollm2 --accelerate-config cluster.yaml --out runs/mine",
    )
)
def tune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of what is tuned, and of its checkpoint")],
    data: Annotated[str | None, typer.Option(help="Catalog name or file [default: fits the model]")] = None,
    method: Annotated[str, typer.Option(help="See `monochord methods`")] = "lora",
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate [default: the method's own]")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    max_length: Annotated[int | None, typer.Option(min=4)] = None,
    precision: Annotated[str, typer.Option(help="no or bf16")] = "no",
    accelerate_config: Annotated[
        Path | None, typer.Option(help="What `accelerate config` wrote: train on these processes and machines")
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Tune a model by one method and save what was tuned."""
    if accelerate_config is not None:
        _launch(accelerate_config)
        return
    from accelerate import PartialState

    from monochord.lab.tune import tune as run

    found = run(
        model,
        data,
        method,
        out=out,
        steps=steps,
        lr=lr,
        seed=seed,
        batch_size=batch_size,
        max_length=max_length,
        precision=precision,
        progress=not quiet,
    )
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()
    if not state.is_main_process:
        return
    if as_json:
        print_json(found)
    else:
        table(["", ""], [(name, _word(value)) for name, value in found.items()])


def _launch(config: Path) -> None:
    """The same command in every process that the configuration asks for."""
    import subprocess

    if not config.exists():
        raise FileNotFoundError(f"{config} is not there: `accelerate config --config_file {config}` writes it")
    given = sys.argv[1:]
    at = next(i for i, argument in enumerate(given) if argument.startswith("--accelerate-config"))
    rest = given[:at] + given[at + (1 if "=" in given[at] else 2) :]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "monochord.cli"]
    code = subprocess.run([*command, *rest]).returncode
    if code:
        raise typer.Exit(code)


@app.command(
    epilog=examples(
        "monochord steer smollm2 'The film was' --toward 'I love it' --away 'I hate it' --at blocks.15:out --scale 4",
    )
)
def steer(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What the model goes on from")],
    toward: Annotated[list[str], typer.Option(help="A text that shows what is wanted; repeat for more")],
    away: Annotated[list[str], typer.Option(help="A text that shows the opposite; repeat for more")],
    at: Annotated[str, typer.Option(help="The site that is moved")] = "blocks.*:out",
    scale: Annotated[float, typer.Option(help="How far, in lengths of the difference; negative: the other way")] = 1.0,
    tokens: Annotated[int, typer.Option(help="New tokens", min=1)] = 30,
    as_json: Json = False,
) -> None:
    """Move activations from one set of texts toward another while the model writes."""
    import torch

    import monochord as mc
    from monochord.core.sites import resolve
    from monochord.steer.contrast import contrast

    net, processor = mc.load(model), mc.processor(model)
    found = resolve(net, at)
    site = str(found[len(found) // 2])  # of several, the one in the middle
    vector = contrast(net, toward, away, site, processor)
    inputs = processor(prompt, return_tensors="pt")

    def write() -> str:
        with torch.inference_mode():
            ids = net.generate(**inputs, max_new_tokens=tokens, do_sample=False)  # type: ignore[operator]
        return str(processor.decode(ids[0], skip_special_tokens=True))

    plain = write()
    with mc.attach(net, {site: mc.Add(vector, scale=scale)}):
        steered = write()
    shown = {"site": site, "length": float(vector.norm()), "plain": plain, "steered": steered}
    if as_json:
        print_json(shown)
    else:
        table(["", ""], [(name, _word(value)) for name, value in shown.items()])


@app.command(epilog=examples("monochord diff minilm runs/mine", "monochord diff ./base ./tuned --html diff.html"))
def diff(
    base: Model,
    tuned: Annotated[str, typer.Argument(help="A tuned model, or the folder of a saved tuner")],
    html: Annotated[Path | None, typer.Option(help="Write a page with figures there")] = None,
    as_json: Json = False,
) -> None:
    """Show what fine-tuning changed, block by block."""
    from monochord.lab import diff as comparing

    found = comparing.diff(base, tuned)
    if html is not None:
        partial = html.with_name(f".{html.name}.tmp")
        partial.write_text(comparing.page(found, f"{base} and {tuned}"), encoding="utf8")
        partial.replace(html)
    if as_json:
        print_json(found)
        return
    table(list(comparing.COLUMNS), comparing.table_rows(found))
    typer.echo(f"\n{found['changed']} of {found['parameters']} tensors changed, by {found['norm']:.2%} of the weights")
    if found["contribution"] is not None:
        typer.echo(f"tuning's share in what blocks add at the prompts' last tokens: {found['contribution']:.1%}")


@app.command(
    epilog=examples(
        "monochord merge ./base 0.5*./tuned-a 0.5*./tuned-b --out merged",
        "monochord merge ./base '1*./tuned' '-1*./forget' --out merged --scale 0.8",
    )
)
def merge(
    base: Annotated[Path, typer.Argument(help="Folder of safetensors, sharded or not")],
    terms: Annotated[list[str], typer.Argument(help="COEFFICIENT*FOLDER of tuned checkpoints, or of saved deltas")],
    out: Annotated[Path, typer.Option(help="The new folder; it appears when it is whole")],
    scale: Annotated[float, typer.Option(help="Of the sum of all changes")] = 1.0,
    only: Annotated[str | None, typer.Option(help="Change only tensors that match, e.g. '**.mlp.**'")] = None,
    as_json: Json = False,
) -> None:
    """Add changes of weights to a checkpoint, tensor by tensor."""
    from monochord.core.delta import Delta

    total: Any = None
    for term in terms:
        coefficient, path = _term(term)
        delta = Delta.load(path) if path.is_file() else Delta.between(base, path)
        total = coefficient * delta if total is None else total + coefficient * delta
    if only is not None:
        total = _kept(total, only)
    total.apply_to_checkpoint(base, out, scale=scale)
    shown = {"out": str(out), "changed": sum(entry.norm() > 0 for entry in total.values()), "tensors": len(total)}
    if as_json:
        print_json(shown)
    else:
        typer.echo(f"{out}: {shown['changed']} tensors changed")


def _kept(delta: Any, pattern: str) -> Any:
    from monochord.core.delta import Delta
    from monochord.core.pattern import Pattern

    wanted = Pattern.parse(pattern)
    kept = {name: entry for name, entry in delta.items() if wanted.matches(name)}
    if not kept:
        raise ValueError(f"--only {pattern} matches no tensor of the change: the first is {next(iter(delta))}")
    return Delta(kept, next(iter(delta.bases), None))


def _term(text: str) -> tuple[float, Path]:
    number, star, path = text.partition("*")
    try:
        found = (float(number), Path(path)) if star else (1.0, Path(text))
    except ValueError:
        raise ValueError(f"{text}: write a coefficient, a star and a folder: 0.5*./tuned") from None
    if not found[1].exists():
        raise FileNotFoundError(f"{found[1]} is not there")
    return found


@app.command(
    epilog=examples(
        "monochord capture minilm movie-reviews 'blocks.*:out' --out acts.safetensors --statistics",
        "monochord capture smollm2 movie-text 'blocks.12:out' --out acts.zarr --rows 1000",
    )
)
def capture(
    model: Model,
    data: Annotated[str, typer.Argument(help="Catalog name or file")],
    sites: Annotated[str, typer.Argument(help="What to read, e.g. 'blocks.*:out'")],
    out: Annotated[Path, typer.Option(help="A safetensors file for statistics; a folder or NAME.zarr for activations")],
    split: Annotated[str, typer.Option(help="Which split of the data")] = "test",
    rows: Annotated[int, typer.Option(help="How many rows of it", min=1)] = 256,
    statistics: Annotated[bool, typer.Option(help="Means and covariances instead of activations")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    as_json: Json = False,
) -> None:
    """Read activations, or their statistics, over a data set."""
    from monochord.lab.reading import read_out

    found = read_out(model, data, sites, out, split=split, rows=rows, statistics=statistics, batch_size=batch_size)
    if as_json:
        print_json(found)
    else:
        table(["site", "shape"], [(name, str(shape)) for name, shape in found["shapes"].items()])
        typer.echo(f"\n{found['out']}")


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
