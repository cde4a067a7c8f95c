"""The end of a run: whether its images are there, and the files that tell others of them."""

from genpipe.render.folder import OutputFolder
from genpipe.render.gallery import write_gallery
from genpipe.render.journal import PENDING, Journal
from genpipe.render.options import Options
from genpipe.render.results import Report, write_failures, write_metadata, write_report
from genpipe.workers.messages import Model


def finish(journal: Journal, folder: OutputFolder, options: Options, model: Model, report: Report) -> int:
    """Write metadata.jsonl, failures.jsonl, report.json and the gallery, of images that are there.

    Returns:
        How many finished images somebody has removed meanwhile; the journal has them drawn again.

    Raises:
        OSError: the folder has been removed, or a file cannot be written.
    """
    folder.check_there()
    # Where nothing was drawn, the look at the start of the run is good enough.
    missing = folder.check(journal, options.suffix, verify=False) if folder.local and report.batches else 0
    if not journal.get("results_are_written"):
        _write(journal, folder, options, model, report)
        journal.set("results_are_written", True)
    return missing


def _write(journal: Journal, folder: OutputFolder, options: Options, model: Model, report: Report) -> None:
    root, suffix = folder.root, options.suffix
    write_metadata(journal, root, suffix)
    write_failures(journal, root, suffix)
    left = journal.counts()[PENDING]
    if report.batches or not (root / "report.json").exists():
        write_report({**report.to_dict(), "model": model.name, "dtype": model.dtype, "left": left}, root)
    write_gallery(journal, root, suffix, model.name, "" if folder.local else f"{folder.url}/", options.spec)
    if not folder.local:  # the storage gets all but the gallery, too
        for name in ("metadata.jsonl", "failures.jsonl", "report.json"):
            folder.files.write(name, (root / name).read_bytes())
