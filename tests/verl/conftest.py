"""What an older release of verl needs to be imported beside this environment; see test_releases.py."""

import verl

from .release import RELEASE

if RELEASE == (0, 7, 0):
    import transformers

    # transformers 5 gave the class another name.
    transformers.AutoModelForVision2Seq = transformers.AutoModelForImageTextToText


def pytest_report_header():
    return f"verl {verl.__version__} ({verl.__file__})"
