"""`autosam2 report`: a benchmark as web pages."""

from pathlib import Path

import click


@click.command(
    short_help="Make web pages of a benchmark, with a 3D viewer.",
    epilog="Example: autosam2 report benchmark_Dataset021_BraTS2021 --viewer-cases 10",
)
@click.argument("benchmark", type=click.Path(path_type=Path))
@click.option(
    "--viewer-cases",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Cases in the viewer, evenly spaced from the worst to the best by mean Dice; 0: no viewer.",
)
def command(benchmark: Path, viewer_cases: int) -> None:
    """Write BENCHMARK/report/: tables, figures, and a viewer of cases in 3D, to be opened in a browser.

    BENCHMARK is a folder that `autosam2 benchmark` has written. An earlier report in it is replaced. The pages need
    neither a server nor the internet, and the folder can be moved or sent as it is.
    """
    from nnunet_autosam2.report.write import write_report

    index = write_report(benchmark, viewer_cases)
    size = sum(file.stat().st_size for file in index.parent.rglob("*") if file.is_file())
    click.echo(f"{index}: {size / 2**20:.1f} MiB in its folder. Open it in a browser.")
    click.echo(f"From another machine: python -m http.server --bind 127.0.0.1 --directory {index.parent}")
