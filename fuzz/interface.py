"""Let atheris choose the bytes of `tests/interface.py`: ``make fuzz``.

Arguments are libFuzzer's: folders of a corpus, ``-max_total_time=60`` and others. Where atheris is
not installed, bytes are random for as long.
"""

import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

try:
    import atheris
except ImportError:
    import interface

    times = re.findall(r"-max_total_time=(\d+)", " ".join(sys.argv))
    sys.argv[1:] = ["--minutes", str(int((times or ["120"])[0]) / 60)]
    sys.exit(interface.main())

with atheris.instrument_imports(include=["xentrs"]):
    import interface

warnings.simplefilter("error")
atheris.Setup(sys.argv, interface.check)
atheris.Fuzz()
