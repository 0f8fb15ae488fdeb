"""Run the code of notebooks where the second device is told apart:
``python tests/chapters_on_second_device.py RUNS [00 01 02 ...]``.

The smoke profile on the phantom, in one process and in the order of their names (without numbers: all);
stops at the first cell that mixes devices.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
from second_device import second_device

REPOSITORY = Path(__file__).parents[1]


def main(runs: str, *chapters: str) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    mpl.use("agg")
    with second_device():
        for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
            if chapters and path.name.partition("_")[0] not in chapters:
                continue
            shell = InteractiveShell()
            for cell in json.loads(path.read_text())["cells"]:
                if cell["cell_type"] != "code":
                    continue
                source = "".join(cell["source"])
                shell.run_cell(source).raise_error()
                if "parameters" in cell["metadata"].get("tags", []):
                    shell.user_ns |= {"profile": "smoke", "run_dir": f"{runs}/phantom-smoke-seed0"}
            print(f"{path.stem}: passed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
