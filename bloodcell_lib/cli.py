"""The command `bloodcell`. It parses, calls and prints; what it calls is imported only when it is called.

Exit codes: 0 done; 1 something that was started did not end well; 2 bad input, told in one sentence; 3 done, but some
files were left out because they cannot be read; 130 Ctrl-C; 143 terminated.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from bloodcell_lib.errors import BloodcellError, RunFailed

UsageError = typer.BadParameter.__mro__[1]  # of click, which newer versions of typer hold inside
MAX_SEED = 2**32 - 1
LEFT_OUT = 3
INTERRUPTED = 130  # a shell's code for Ctrl-C, and typer's
TERMINATED = 143  # and for SIGTERM, which a scheduler sends

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__.split("\n")[0].replace("`", ""))
data_app = typer.Typer(no_args_is_help=True, help="Look at, download and list images.")
app.add_typer(data_app, name="data")

Data = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time, on Python 3.10 too
    typer.Option(
        "--data",
        help="Folder with train/, test/ and class_map.json. Default: BLOODCELL_DATA, else what `bloodcell data fetch` "
        "brought, else cells that are drawn, in the demo alone.",
    ),
]
Profile = Annotated[str, typer.Option(help="Budget: demo, cpu or full.")]
Normalise = Annotated[
    bool,
    typer.Option("--normalise", help="First undo another site's magnification, light, dyes and blur, as read of each."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")]


@app.command()
def run(
    profile: Profile = "demo",
    data: Data = None,
    only: Annotated[str, typer.Option(help="Numbers of notebooks, such as 02,04.")] = "",
    settings: Annotated[list[str], typer.Option("--set", help="A notebook's parameter, name=value; repeatable.")] = [],  # noqa: B006
    limit: Annotated[float, typer.Option(min=1, help="Most seconds for one notebook.")] = 12 * 3600.0,
    report: Annotated[bool, typer.Option(help="Build the report's PDF after the notebooks.")] = True,
    skip_bad: SkipBad = False,
) -> None:
    """Run the notebooks end to end and say where everything lies."""
    from bloodcell_lib import notebooks, paths, plans, shelf, views

    home = paths.RUNS / plans.profile(profile).name
    chosen = notebooks.choose(only.split(",") if only else None)
    given = notebooks.parse_settings(settings) | ({"skip_bad": True} if skip_bad else {})
    notebooks.check(chosen, profile, given)
    folder = data
    if any(notebooks.opens_images(path, given) for path in chosen):
        folder = views.image_folder(data, profile)
        cells = views.load_images(profile, folder, skip_bad)  # bad images are told now, in one sentence
        print(f"images: {len(cells)} {cells.source} in {folder}\nprofile: {profile}", flush=True)
    else:
        print(f"records: {given['results']}", flush=True)
    failed, homes = [], {}
    for outcome in notebooks.run(chosen, profile, folder, given, limit=limit):
        homes[outcome.executed.parent.parent] = None  # of records from elsewhere another one than `home`
        state = "failed" if outcome.problems else "done"
        print(f"{outcome.name:<22}{state:<8}{outcome.seconds:6.0f} s{outcome.peak_bytes / 2**30:7.2f} GiB", flush=True)
        for problem in outcome.problems:
            print(f"  {problem}", flush=True)
        failed += [outcome.name] if outcome.problems else []
    for place in homes:
        _summary(place)
    if report and not failed and not only and given.get("results", shelf.OWN) == shelf.OWN:
        _demo_report(home, profile)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(chosen)} notebooks failed: {', '.join(failed)}.")


def _summary(home: Path) -> None:
    """Prints the main run's result and where notebooks, records and figures lie."""
    from bloodcell_lib import evaluate
    from bloodcell_lib.records import load_records

    mains = [record for record in load_records(home) if record.experiment == "main"]
    if mains:
        row = evaluate.overview(mains)
        source = mains[0].info["data"]["source"]
        print(
            f"\nmain: {row['mean']:.2%} validation accuracy on {source} "
            f"(95 % interval {row['low']:.1%} to {row['high']:.1%}, {len(mains)} seed{'s' * (len(mains) > 1)})"
        )
    for what in ("notebooks", "figures", "study"):
        if (home / what).is_dir():
            print(f"{what + ':':<11}{home / what}")


def _demo_report(home: Path, profile: str) -> None:
    """Builds this run's own report beside its records, or says what is missing; neither is a failure of the run."""
    from bloodcell_lib import paths, plans, records
    from bloodcell_lib import report as reports

    missing = reports.missing_packages()
    if missing:
        print(f"report:    not built, LaTeX is not complete; on Debian: apt-get install {' '.join(missing)}")
        return
    study = plans.profile(profile).study or profile
    stamp = records.stamp(records.load_records(paths.RUNS / study))
    out = reports.build(paths.RUNS, home / "report", home / "report" / "report.pdf", home / "figures", stamp, study)
    print(f"report:    {out}")


@app.command()
def train(
    experiment: Annotated[str, typer.Argument(help="A row of the study, such as main.")] = "main",
    profile: Profile = "demo",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of weights, order and augmentation.")] = 0,
    data: Data = None,
    epochs: Annotated[Optional[int], typer.Option(help="In place of the profile's.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(help="In place of the recipe's.")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="Learning rate in place of the recipe's.")] = None,  # noqa: UP045
    precision: Annotated[Optional[str], typer.Option(help="float32, float16 or bfloat16.")] = None,  # noqa: UP045
    device: Annotated[Optional[str], typer.Option(help="cpu or cuda.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option(help="Go on from the last epoch of a run that was cut off.")] = True,
    skip_bad: SkipBad = False,
) -> None:
    """Train one experiment and record it; what is recorded is not run again."""
    from bloodcell_lib import experiments, machine, tasks, views

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "precision": precision}
    changes = tuple((name, value) for name, value in given.items() if value is not None)
    task = tasks.Task(experiment, seed, profile, changes=changes, device=device, resume=resume)
    task.plan()  # a wrong name or value is told before any image is read
    _check_device(device)
    begun = machine.now()
    folder = views.image_folder(data, profile)
    cells = views.load_images(profile, folder, skip_bad, view=task.view)
    print(f"{task.name}: {len(cells)} {cells.source}", flush=True)
    record = experiments.run(task, cells, lambda: experiments.whole(task, folder, skip_bad, progress=True))
    final, best = record.accuracy(), record.accuracy("best")
    said = "no validation images" if final is None else f"validation accuracy {final:.2%} (best epoch {best:.2%})"
    before = " before" if record.info["started"] < begun else ""
    print(f"recorded{before}: {said}, {record.info['wall_seconds']:.0f} s\n{record.folder}")


def _check_device(name: str | None) -> None:
    import torch

    try:
        if name and torch.empty(0, device=name).device.type not in ("cpu", "cuda"):
            raise RuntimeError("a kind of device that nothing here was tried on")
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise BloodcellError(f"Device {name} cannot be used here: choose cpu, or cuda where there is a GPU.") from error


def _device(name: str | None) -> str:
    """The device that is asked for, if it can be used, else the best there is."""
    import torch

    _check_device(name)
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


@app.command()
def study(
    profile: Profile = "demo",
    data: Data = None,
    experiments: Annotated[
        str,
        typer.Option(
            help="Names or groups: study, all, extra, cv, speed, unknown, lever, best, best_cv, confirmed, stage, "
            "ablation, magnified_cv, hardy_cv, seasoned_cv, travelled_cv, patient_cv, patient_travelled_cv, "
            "well_travelled_cv, best_short, robustness, labels, part, cv_short, cv_pair, distilled, cv_clean."
        ),
    ] = "",
    seeds: Annotated[
        str, typer.Option(help="Such as 0,1,2; default: the profile's, of which many rows take one.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine; several may share one GPU.")] = 1,
    dask: Annotated[str, typer.Option(help="Address of a Dask scheduler whose workers share the folders.")] = "",
    skip_bad: SkipBad = False,
) -> None:
    """Run the grid of experiments and seeds; what is recorded is skipped."""
    from bloodcell_lib import plans, views
    from bloodcell_lib import study as many

    budget = plans.profile(profile)
    budget = plans.profile(budget.study or budget.name)
    tasks = many.grid(_names(experiments), _seeds(seeds) or None, budget.name, progress=False)
    folder = views.image_folder(data, profile)
    # Decoded once, before workers would each do it.
    for view in dict.fromkeys(view for task in tasks for view in task.views):
        views.load_images(budget.name, folder, skip_bad, view=view)
    with many.live_table() as show, _executor(workers, dask) as executor:
        done = many.run_all(tasks, folder, executor, skip_bad, show=show)
    failed = [row for row in done if row.state == "failed"]
    print(f"{len(done) - len(failed)} of {len(done)} runs are recorded in {tasks[0].results / budget.name}")
    if failed:
        raise RunFailed("\n".join(f"{row.task.name} seed {row.task.seed} failed: {row.why}" for row in failed))


def _names(text: str) -> list[str]:
    from bloodcell_lib.plans import EXPERIMENTS, GROUPS, STUDY

    groups = {"study": list(STUDY), "all": list(EXPERIMENTS)}
    groups |= {group: [row.name for row in EXPERIMENTS.values() if row.group == group] for group in GROUPS}
    groups |= {name: [name] for name in EXPERIMENTS}  # a row's own name goes before a group's: `best` is both
    wanted = [name.strip() for name in text.split(",") if name.strip()] or ["study"]
    return list(dict.fromkeys(row for name in wanted for row in groups.get(name, [name])))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",") if seed.strip()]
    except ValueError:
        seeds = [-1]
    if any(not 0 <= seed <= MAX_SEED for seed in seeds):
        raise BloodcellError(f"--seeds {text} is no list of whole numbers from 0 to {MAX_SEED}: write 0,1,2.")
    return list(dict.fromkeys(seeds))


def _executor(workers: int, dask: str):
    from bloodcell_lib.study import InProcess, Processes, dask_executor

    if dask:
        return dask_executor(dask)
    return InProcess() if workers == 1 else Processes(workers)


@app.command()
def evaluate(
    profile: Profile = "demo",
    experiment: Annotated[str, typer.Option(help="Whose runs.")] = "main",
    published: Annotated[bool, typer.Option(help="Read report/results in place of this machine's runs.")] = False,
    external: Annotated[Optional[Path], typer.Option(help="Another site's images, a folder a class.")] = None,  # noqa: UP045
    mapping: Annotated[list[str], typer.Option("--map", help="A folder's class, old=new; old=- leaves it out.")] = [],  # noqa: B006
    crop: Annotated[Optional[float], typer.Option(help="Share of an external image's shorter side to keep.")] = None,  # noqa: UP045
    device: Annotated[Optional[str], typer.Option(help="cpu or cuda, for external images.")] = None,  # noqa: UP045
    normalise: Normalise = False,
    skip_bad: SkipBad = False,
) -> None:
    """Print accuracy with its interval, the classes one by one and the most frequent confusions.

    With --external, this machine's networks score another site's images, and the result is recorded.
    """
    from bloodcell_lib import evaluate as metrics
    from bloodcell_lib import paths, plans
    from bloodcell_lib.records import load_records

    plans.experiment(experiment.split("+")[0])  # after a plus comes what was changed
    folder = (paths.RESULTS if published else paths.RUNS) / plans.profile(profile).name
    chosen = [record for record in load_records(folder) if record.experiment == experiment]
    if published and external is not None:
        raise BloodcellError("Published records have no weights: leave out --published to use this machine's.")
    if not chosen and published:
        raise BloodcellError(f"No record of {experiment} in {folder}: give another --experiment or --profile.")
    if not chosen:
        name, *changes = experiment.split("+")
        options = [f"--{key.replace('_', '-')} {value}" for key, _, value in (one.partition("=") for one in changes)]
        made = " ".join([f"bloodcell train {name} --profile {profile}", *options])
        raise BloodcellError(f"No record of {experiment} in {folder}: make one with `{made}`.")
    if external is not None:
        _external(chosen, external.expanduser(), mapping, crop, device, skip_bad, normalise)
        return
    if mapping or crop is not None or device or normalise or skip_bad:
        raise BloodcellError(
            "--map, --crop, --device, --normalise and --skip-bad are for another site's images: give these with "
            "--external."
        )
    if not metrics.validated(chosen):
        raise BloodcellError(f"{experiment} held no image out: evaluate its recipe, which did, in its place.")
    row, pooled = metrics.overview(chosen), metrics.pool(chosen)
    print(f"{experiment}, profile {profile}, {len(chosen)} run(s) on {chosen[0].info['data']['source']}")
    print(
        f"accuracy {row['mean']:.2%} (Wilson's 95 % interval, over images alone, {row['low']:.2%} to "
        f"{row['high']:.2%}), "
        f"macro F1 {row['macro_f1']:.4f}"
    )
    print(metrics.per_class(pooled.labels, pooled.predicted).round(4).to_string())
    print(metrics.top_confusions(metrics.confusion(pooled.labels, pooled.predicted)).to_string(index=False))


def _external(chosen, folder, mapping, crop, device, skip_bad, normalise) -> None:
    """Scores and records another site's images."""
    from bloodcell_lib import external

    _check_device(device)
    result, path = external.evaluate(chosen, folder, external.parse_map(mapping), crop, device, skip_bad, normalise)
    print(external.summary(result), f"recorded: {path}", sep="\n")


@app.command()
def trust(
    profile: Profile = "demo",
    data: Data = None,
    experiment: Annotated[str, typer.Option(help="Whose runs.")] = "main",
    only: Annotated[
        str,
        typer.Option(help="Some of trust, labels, mistakes, explain, shortcuts, robustness, travel, reading, unknown."),
    ] = "",
    device: Annotated[Optional[str], typer.Option(help="cpu or cuda.")] = None,  # noqa: UP045
    skip_bad: SkipBad = False,
) -> None:
    """Analyse this machine's trained networks and record what is found; what is recorded is made anew."""
    from bloodcell_lib import analyses, analysis, plans, views

    device = _device(device)
    row = plans.experiment(experiment.split("+")[0])  # what was changed by hand does not change what is seen
    folder = views.image_folder(data, profile)
    cells = views.load_images(profile, folder, skip_bad, view=plans.profile(profile).view(row))
    subject = analysis.Subject(plans.profile(profile).name, cells, experiment, device, folder=folder)
    for path in analyses.make(subject, [name.strip() for name in only.split(",") if name.strip()] or analyses.NAMES):
        print(f"{path.stem:<12} {path}", flush=True)


@app.command()
def reader(
    profile: Profile = "demo",
    data: Data = None,
    device: Annotated[Optional[str], typer.Option(help="cpu or cuda.")] = None,  # noqa: UP045
    publish: Annotated[bool, typer.Option("--publish", help="Also put it beside the published weights.")] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Teach a network to read how a photograph was taken, from all images; `--normalise` undoes what it reads."""
    from bloodcell_lib import export, microscope, plans, records, views
    from bloodcell_lib import reader as eyes

    budget = plans.profile(profile)
    if publish:
        export.check_packages()
        if budget.disposable:
            raise BloodcellError("The demo gives no results: publish the reader of cpu or full.")
    device = _device(device)
    folder = views.image_folder(data, profile)
    cells = views.load_images(profile, folder, skip_bad, view=(microscope.SIDE, None))
    if publish and records.stamp_of(cells.source, budget.name):
        raise BloodcellError(f"The images in {folder} are drawn: publish a reader of photographs.")
    lesson = eyes.Lesson(budget.name, "all", cells, device)
    eye = lesson.taught()
    print(export.export_reader(eye.cpu(), eyes.about(lesson.file)) if publish else lesson.file)


@app.command()
def figures(
    profile: Annotated[str, typer.Option(help="Draw from this machine's runs; default: the published records.")] = "",
    data: Data = None,
    skip_bad: SkipBad = False,
) -> None:
    """Draw every figure that the records allow, as PDF and PNG."""
    from bloodcell_lib import analysis, evaluate, paths, plans, records
    from bloodcell_lib import figures as draw
    from bloodcell_lib.shelf import images_of, published_profile

    if profile:
        budget = plans.profile(profile)
        home, target = paths.RUNS / budget.name, paths.RUNS / budget.name / "figures"
        rows = records.load_records(home)
        if not rows:
            raise BloodcellError(f"No records in {home}: make one with `bloodcell train main --profile {profile}`.")
        grid = records.load_records(paths.RUNS / budget.study) if budget.study else rows
        cells = images_of(evaluate.leading(rows)[0], str(data or ""), skip_bad)
        if data and cells is None:
            raise BloodcellError(f"{data} holds other images than the runs in {home} saw: give the same, or none.")
    else:
        if data or skip_bad:
            raise BloodcellError("--data and --skip-bad are for this machine's runs: give them with --profile.")
        home, target = paths.RESULTS / published_profile(), paths.FIGURES
        rows = grid = _published(home)
        cells = None  # what is published shows no real cell
    found = analysis.load_analyses(home)
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always", UserWarning)
        drawn = draw.draw_all(rows, grid, found, cells, target, records.stamp(rows))
    for said in left_out:
        print(said.message)
    for name, files in drawn.items():
        print(f"{name:<20} {', '.join(str(path) for path in files)}")


@app.command()
def report() -> None:
    """Print the published records into README.md and the other documents, and build report/report.pdf."""
    from bloodcell_lib import documents, paths, shelf
    from bloodcell_lib import report as reports

    _published(paths.RESULTS / shelf.published_profile())
    for path in documents.update():
        print(path)
    print(reports.build())


def _published(home: Path) -> list:
    """The published records; what is printed from none would be empty."""
    from bloodcell_lib import records

    found = records.load_records(home)
    if not found:
        raise BloodcellError(f"No records in {home}: `bloodcell publish` brings this machine's there.")
    return found


@app.command()
def publish(
    profile: Annotated[str, typer.Option(help="Whose records.")] = "cpu",
    weights: Annotated[
        bool, typer.Option("--weights", help="In place of the records: the weights of a run, seed 0, for `predict`.")
    ] = False,
    experiment: Annotated[
        str, typer.Option(help="Whose weights; default: of the recipe that `predict` has, trained on all images.")
    ] = "",
) -> None:
    """Copy this machine's records, without weights, to report/results; or, with --weights, what `predict` reads."""
    from bloodcell_lib import paths, plans, shelf, tasks

    budget = plans.profile(profile)
    if budget.disposable:
        raise BloodcellError("The demo gives no results: publish cpu or full.")
    if experiment and not weights:
        raise BloodcellError("--experiment says whose weights: give it with --weights; records are published all.")
    if weights:
        from bloodcell_lib import export
        from bloodcell_lib.predict import load_set

        experiment = experiment or f"{plans.CHOSEN}_final"
        run = tasks.Task(plans.experiment(experiment).name, 0, budget.name).folder
        if not run.exists():
            raise BloodcellError(f"No run in {run}: make it with `bloodcell train {experiment} --profile {profile}`.")
        new = export.export(run)
        if not load_set(paths.WEIGHTS)[0]["temperatures"]:
            print(
                "bloodcell: Probabilities are as trained: `bloodcell trust --only trust "
                f"--experiment {plans.measured(experiment)} --profile {profile}` finds their temperature; "
                "then publish again.",
                file=sys.stderr,
            )
    else:
        new = shelf.publish(budget.name)
    print("\n".join(map(str, new)) or "nothing new")


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Files, or folders with images straight inside.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File to write, such as prediction_labels.json; default: print."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="json or csv; default: as the file's name ends, or lines to read.")
    ] = "",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="All eight, in any format.")] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over turns and mirrorings; 8 times slower.")] = False,
    normalise: Normalise = False,
) -> None:
    """Tell the class of each image, by the published weights."""
    out = out and out.expanduser()
    if out and out.is_dir():
        raise BloodcellError(f"{out} is a folder: give a file, such as {out / 'prediction_labels.json'}.")
    form = form or (out.suffix[1:].lower() if out else "lines")
    if form not in (("json", "csv") if out else ("json", "csv", "lines")):
        raise BloodcellError(f"Unknown format '{form}': choose json or csv with --format.")
    from tqdm import tqdm

    from bloodcell_lib import paths
    from bloodcell_lib import predict as labels

    if not all(images):
        raise BloodcellError("An empty name is no file: is the variable that should hold it set?")
    files = labels.find([Path(name).expanduser() for name in images])
    network, eye = labels.Network(), labels.Eye() if normalise else None
    # The file is begun first: a folder that cannot be written is told before any work is done.
    with paths.write_whole(out) if out else contextlib.nullcontext() as target:
        predicted = labels.predict(files, network, tta, eye=eye)
        rows = list(tqdm(predicted, "predict", len(files), disable=None, unit="image", leave=False))
        bad, good = [row for row in rows if row.bad], [row for row in rows if not row.bad]
        if not good:
            raise BloodcellError(f"No file can be read, {len(bad)} tried; the first: {bad[0].name} ({bad[0].bad}).")
        text = {"json": labels.as_json, "csv": labels.as_csv, "lines": labels.as_lines}[form](good, probabilities)
        if target:
            target.write_text(text, encoding="utf-8", errors="backslashreplace")
    print(f"{out}: {len(good)} images, {labels.counted(good)}" if out else text, end="\n" if out else "", flush=True)
    for row in bad:
        print(_one_line(f"Left out: {row.name} ({row.bad})."), file=sys.stderr)
    if bad:
        raise typer.Exit(LEFT_OUT)


@app.command()
def bench(
    part: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="train, switches, predict, load or growth; default: all of them."),
    ] = None,
    device: Annotated[Optional[str], typer.Option(help="cpu or cuda; default: the GPU where there is one.")] = None,  # noqa: UP045
    repetitions: Annotated[int, typer.Option(min=0, help="Turns of each contender; 0: the device's default.")] = 0,
    sizes: Annotated[str, typer.Option(help="Numbers of images for growth, such as 1000,4200,17092,100000.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Only try whether all of it works; nothing is kept.")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Write to report/results in place of runs.")] = False,
) -> None:
    """Measure speed as ratios, and memory; write every repetition to bench-<device>.json."""
    from bloodcell_lib import bench as speed
    from bloodcell_lib import paths

    if part is not None and part not in speed.PARTS:
        raise BloodcellError(f"Unknown part '{part}': choose one of {', '.join(speed.PARTS)}.")
    if quick and publish:
        raise BloodcellError("--quick measures nothing worth publishing: leave one of --quick and --publish out.")
    _check_device(device)
    where = speed.device_name(device)
    budget = speed.budget("quick" if quick else where, repetitions, sizes)
    target = speed.file(paths.RESULTS if publish else paths.RUNS, where)
    results = {} if quick else speed.read(target)
    for name in [part] if part else speed.PARTS:
        new = speed.run(name, budget, where, speed.say)
        print(speed.markdown(new), flush=True)
        if not quick:  # part by part, so that one that is cut off costs no other
            results = speed.together(results, new)
            speed.write(target, results)
    if not quick:
        print(target)


@data_app.command("check")
def data_check(
    folder: Annotated[Optional[Path], typer.Argument(help="Default: as for --data.")] = None,  # noqa: UP045
    manifest: Annotated[bool, typer.Option("--manifest", help="Also write data/manifest.csv.")] = False,
) -> None:
    """Audit a folder: counts, sizes, modes, unreadable files, duplicates."""
    from bloodcell_lib import audit, views

    found = audit.check(views.image_folder(folder, "demo"))
    print(audit.summary(found))
    if manifest:
        print(f"\nwritten: {audit.write_manifest(found)}")


@data_app.command("fetch")
def data_fetch(
    source: Annotated[str, typer.Argument(help="course, pbc or bloodmnist.")],
    size: Annotated[Optional[int], typer.Option(help="Of bloodmnist: 28, 64, 128 or 224.")] = None,  # noqa: UP045
) -> None:
    """Download a public source, check it and unpack it."""
    from bloodcell_lib import download

    print(download.fetch(source, size))
    print(download.terms(source, size))


def main() -> None:
    """The command's entry: runs it and turns what went wrong into one sentence and an exit code."""
    if sys.stdout:  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    code, told = 0, ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what is half written goes
    try:
        code = app(standalone_mode=False) or 0
    except BloodcellError as error:
        code, told = 2, _one_line(str(error))
    except RunFailed as error:
        code, told = 1, str(error)
    except UsageError as error:
        code, told = 2, _one_line(error.format_message())  # "" where the help was printed for want of a command
    except OSError as error:
        code, told = 2, _one_line(f"{error.strerror or error}: {error.filename or 'no file named'}")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        trains = bool({"run", "train", "study"} & set(sys.argv[1:2]))
        told = "Stopped." + " A training goes on from its last whole epoch if started again." * trains
    if told:
        print(f"bloodcell: {told}", file=sys.stderr)
    sys.exit(code)


def _one_line(text: str) -> str:
    """The text with what cannot be shown, such as a line's end in a file's name, spelt out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    main()
