"""The command line: ``trautoml demo``, ``run`` and ``show``."""

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from trautoml import __version__
from trautoml.errors import InputError, TrautomlError
from trautoml.plain import plain

if TYPE_CHECKING:
    from trautoml.callbacks import Callbacks
    from trautoml.search import SearchBudget
    from trautoml.settings import Settings
    from trautoml.task import Task

app = typer.Typer(
    name="trautoml",
    help="Transferable AutoML for image classification: reuse a model where an earlier dataset "
    "was of the same kind, search where none was.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for an unknown option and the like; its module has no lasting name."""

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it; typer returns it too."""

UNLIMITED_TRIALS = 10**6
"""With a budget in time, the time is what ends a search."""

StoreOption = Annotated[Path, typer.Option(help="Folder of the log and the models.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="Worker processes; 0 runs in this one. Default: one per processor, or 0 on CUDA."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA if present), cpu, cuda, cuda:1, ...")]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="What one search may spend: a number of candidates (20), or a time (90s, 10m, 2h)."
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(help="Epochs of the longest training of a search and of the final one."),
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    store: StoreOption = Path("trautoml-demo"),
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run the main job on six small tasks made from the digits that ship with scikit-learn."""
    from trautoml.demo_tasks import demo_tasks
    from trautoml.search import SearchBudget

    print("Six tasks arrive one after another: digits, rotated digits and digits on photographs,")
    print("each whole and halved. Watch which ones share a model. They are so tiny that a search")
    print("costs little more than the probes: searches grow with the images, probes don't.\n")
    _fit_all(
        demo_tasks(),
        store,
        SearchBudget(trials=20, epochs=27),
        settings=None,
        searcher="hyperband",
        workers=workers,
        device=device,
    )


@app.command()
def run(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="A folder of class folders, an .npz file, or a torchvision dataset's name; "
            "with @0.5 behind it for a stratified half.",
        ),
    ],
    store: StoreOption = Path("trautoml-store"),
    budget: BudgetOption = None,
    epochs: EpochsOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side to which the images of folders are brought, 8 to 224. "
            "Default: their median, at most 64, or the backbone's side."
        ),
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Where torchvision's datasets are, or are downloaded to.")
    ] = Path("data"),
    searcher: Annotated[
        str,
        typer.Option(
            help="hyperband, gp, tpe, metaqnn, nas-rl, net2net or random; in the setting cells "
            "also enas and darts, but not metaqnn and net2net; or one that a package registers."
        ),
    ] = "hyperband",
    setting: Annotated[
        str | None,
        typer.Option(
            help="What is searched: scratch (a chain), predefined (a chain on a frozen "
            "backbone) or cells; fixed with the store. Default scratch."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Setting predefined: a model of torchvision, or MODULE:FUNCTION that makes one; "
            "fixed with the store. Default googlenet."
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(help="Where the backbone is cut; fixed with the store. Default inception4e."),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            help="Pixels a side that the backbone sees; fixed with the store. Default 224."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="The backbone's: imagenet (torchvision's), a .safetensors, .pt or .pth file, or "
            "none; fixed with the store. Default imagenet."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Fixed when a store is made. Default 0.")] = None,
    probes: Annotated[
        int | None, typer.Option(help="Number of probe models; fixed with the store. Default 6.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trainings of each probe; fixed with the store. Default 8.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Level of the test, 0 for none; fixed with the store. Default 0.005."),
    ] = None,
) -> None:
    """Give each task a model, in the order given: reused if it can be, searched if it must be."""
    from trautoml.device import resolve_device
    from trautoml.image_files import DEFAULT_SIDE
    from trautoml.images import MAX_SIDE
    from trautoml.loading import load_task
    from trautoml.search import make_searcher

    wanted = {
        "setting": setting,
        "seed": seed,
        "probes": probes,
        "trials": trials,
        "grouping": _given(alpha=alpha),
        "backbone": _given(name=backbone, node=node, side=side, weights=weights),
    }
    # All is read before the first task is worked on: a typing error in the last must not cost
    # hours, nor leave a store that was made with the wrong settings.
    chosen = _budget(budget, epochs)
    settings = _settings(store, _given(**wanted))
    make_searcher(searcher, settings.space())  # only to have an error now, if there is one
    max_side = min(settings.backbone.get("side", DEFAULT_SIDE), MAX_SIDE)
    resolve_device(device)
    loaded = []
    with _plain_warnings(), _console().status("") as status:
        for task in tasks:
            status.update(Text(plain(f"reading {task}")))
            loaded.append(load_task(task, data_root=data, image_size=image_size, max_side=max_side))
    _fit_all(
        loaded,
        store,
        chosen,
        settings=settings,
        searcher=searcher,
        workers=workers,
        device=device,
    )


@app.command()
def show(
    store: StoreOption = Path("trautoml-store"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show groups, every decision with posterior and p-value, and the time spent and saved."""
    from trautoml.settings import Settings
    from trautoml.store import Store
    from trautoml.summary import print_summary, summarise

    with Store.open_existing(store) as opened:
        log, settings = opened.log(), Settings.of(opened) or Settings()
    if as_json:
        print(json.dumps(summarise(log, settings), indent=2, allow_nan=False))
    else:
        print_summary(log, settings, _console(), str(store))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 2 for the user's mistakes, 1 for other errors."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of tasks may not fit the terminal's code
    try:
        code = app(args=arguments, standalone_mode=False)
    except InputError as error:
        _leave(2, f"error: {error}")
    except _UsageError as error:
        _leave(2, f"error: {error.format_message()}")
    except TrautomlError as error:
        _leave(1, f"error: {error}")
    except OSError as error:
        _leave(1, f"error: {error.filename or 'the system'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print(file=sys.stderr)
        _leave(code, "interrupted: run the same command again to go on from here")
    sys.exit(code)


def _leave(code: int, message: str) -> NoReturn:
    print(plain(message), file=sys.stderr)
    sys.exit(code)


@contextmanager
def _plain_warnings() -> "Iterator[None]":
    """Show a warning, such as the one about images that can't be read, in one line."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(plain(f"warning: {message}"), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _fit_all(
    tasks: "Sequence[Task]",
    folder: Path,
    budget: "SearchBudget",
    *,
    settings: "Settings | None",
    searcher: str,
    workers: int | None,
    device: str,
) -> None:
    from trautoml.automl import TransferAutoML
    from trautoml.engine import make_engine
    from trautoml.store import Store
    from trautoml.summary import print_summary

    console = _console()
    with (
        Store(folder) as store,
        make_engine(workers, device, store.folder) as engine,
        _observed(console) as observer,
    ):
        automl = TransferAutoML(
            store,
            settings=settings,
            budget=budget,
            searcher=searcher,
            engine=engine,
            callbacks=[observer],
        )
        for task in tasks:
            automl.fit(task)
        log = store.log()
    console.print()
    print_summary(log, automl.settings, console, str(folder))


def _settings(folder: Path, wanted: dict[str, Any]) -> "Settings":
    """Give the settings of the store, or of a new one; an error if it has others than wanted."""
    from trautoml.settings import Settings, agreed_settings
    from trautoml.store import Store

    if Store.is_in(folder):
        with Store(folder) as store:
            stored = Settings.of(store)
            if stored is not None:
                return agreed_settings(store, _changed(stored, wanted))
    return _changed(Settings(), wanted)


def _changed(settings: "Settings", wanted: dict[str, Any]) -> "Settings":
    values = vars(settings)
    kept = values if wanted.get("setting", values["setting"]) == values["setting"] else {}
    wanted["grouping"] = values["grouping"] | wanted["grouping"]
    wanted["backbone"] = kept.get("backbone", {}) | wanted["backbone"]
    return type(settings)(**values | wanted)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _budget(budget: str | None, epochs: int | None) -> "SearchBudget":
    from trautoml.duration import parse_duration
    from trautoml.search import SearchBudget

    chosen = SearchBudget()
    if budget is not None and re.fullmatch(r"\s*[0-9]{1,9}\s*", budget):
        chosen = SearchBudget(trials=int(budget))
    elif budget is not None:
        chosen = SearchBudget(trials=UNLIMITED_TRIALS, seconds=parse_duration(budget))
    return chosen if epochs is None else replace(chosen, epochs=epochs)


def _console() -> Console:
    # Tables keep their shape in a file or a pipe, whatever the width of no terminal is.
    return Console(width=None if sys.stdout.isatty() else 120)


@contextmanager
def _observed(console: Console) -> "Iterator[Callbacks]":
    from trautoml.progress import LiveCallbacks, LogCallbacks

    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    handler.setFormatter(_PlainFormatter())
    logger = logging.getLogger("trautoml")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        if console.is_terminal:
            with LiveCallbacks(console) as live:
                yield live
        else:
            yield LogCallbacks(console)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Format on one line: a message may hold the name of a file."""
        return plain(super().format(record))


if __name__ == "__main__":
    main()
