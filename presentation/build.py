"""Build the slides of a run: ``python presentation/build.py runs/demo -o slides`` writes slides.html and slides.pdf."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cellkit.errors import UserError, counted


def main(arguments: list[str] | None = None) -> int:
    """Build both files; return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Build slides (HTML and PDF) from one run folder, offline.")
    parser.add_argument("run_dir", help="run folder, e.g. runs/demo")
    parser.add_argument("-o", "--out", default="slides", help="folder to write slides.html and slides.pdf to")
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parent))
    from deck import write_html, write_pdf
    from slides import make_slides

    try:
        made = make_slides(given.run_dir)
        for name, reason in made.left_out:
            print(f"left out {name}: {reason}", file=sys.stderr)
        for path in (
            write_html(made, Path(given.out) / "slides.html"),
            write_pdf(made, Path(given.out) / "slides.pdf"),
        ):
            print(f"{path}: {counted(len(made), 'slide')}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
