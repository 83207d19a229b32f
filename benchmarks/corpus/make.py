"""Makes the corpus: files of all formats in turns, and the text of each beside it.

    .venv-documents/bin/python benchmarks/corpus/make.py FOLDER [--files 1000]

``FOLDER/FORMAT/NUMBER.FORMAT`` is a file, ``FOLDER/reference/FORMAT-NUMBER.txt`` its text. The same
numbers give the same texts. ``--pages N`` makes ``FOLDER/pages.pdf`` instead, with N pages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corpus.prose import content, text_of
from corpus.writers import LANGUAGES, WRITERS


def make(folder: Path, files: int) -> None:
    """Write files and references; what is there from a run that did not end is made again."""
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for number in range(files):
        kind = list(WRITERS)[number % len(WRITERS)]
        made = content(number, LANGUAGES.get(kind))
        path = folder / kind / f"{number:04}.{kind}"
        path.parent.mkdir(exist_ok=True)
        # Whole rounds of formats have the same variant, so each format has all of its own.
        WRITERS[kind](made, path, number // len(WRITERS))
        (folder / f"reference/{kind}-{number:04}.txt").write_text(text_of(made), encoding="utf-8")


def make_pages(path: Path, pages: int) -> None:
    """Write a PDF with a chapter of prose on each page."""
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

    styles = getSampleStyleSheet()
    story = []
    for number in range(1, pages + 1):
        story.append(Paragraph(f"Page number {number}", styles["Heading1"]))
        sections = content(number, ()).sections[:2]
        texts = [text for section in sections for text in section.paragraphs][:4]
        story += [Paragraph(text[:700], styles["BodyText"]) for text in texts] + [PageBreak()]
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleDocTemplate(str(path)).build(story)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--pages", type=int)
    options = parser.parse_args()
    if options.pages:
        make_pages(options.folder / "pages.pdf", options.pages)
    else:
        make(options.folder, options.files)


if __name__ == "__main__":
    main()
