"""`python -m dpmtrain.study.page_time --out training/reports/study`: how long a step through the slices takes.

Reads a made-up study of 60 slices in 5 contrasts in headless Chromium. Prints the median time from the key to the
pixels, and keeps a screenshot. Needs Debian's chromium and chromium-driver, and selenium.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpmrecon.errors import BadInputError

from ..arguments import exit_code, module_parser
from ..files import write_text, writing
from .made_up import write_sources
from .make import make
from .page import page

CONTRASTS = ("dwi", "flair", "swi", "t1", "t2")
SHAPE = (60, 256, 256)
SIZE = (1280, 800)  # of the window, in pixels
N_STEPS = 100
PATIENCE = 120.0  # seconds


@contextmanager
def browser(downloads: Path) -> Iterator[Any]:
    """Headless Chromium without a network, WebGL by the CPU; what it exports goes to `downloads`. Raises BadInputError
    where it is not installed."""
    from selenium import webdriver

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        raise BadInputError("chromium or chromedriver is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    for word in ("headless=new", "no-sandbox", f"window-size={SIZE[0]},{SIZE[1]}", "use-angle=swiftshader"):
        options.add_argument(f"--{word}")
    options.add_argument("--enable-unsafe-swiftshader")
    options.add_argument("--proxy-server=127.0.0.1:9")  # nobody listens there
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def press(opened: Any, *keys: str) -> None:
    """Keys, as a keyboard sends them to the page."""
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(opened, duration=0).send_keys(key).perform()


def begin(opened: Any, reader: int) -> None:
    """Choose a reader, and wait for the images. A key may be lost on a page that has just come: it is pressed again."""
    until = time.monotonic() + PATIENCE
    while opened.execute_script("return reader") is None and time.monotonic() < until:
        press(opened, str(reader))
    wait_ready(opened)


def wait_ready(opened: Any) -> None:
    """Until the set's images are shown. Raises BadInputError where the page says something else for PATIENCE."""
    until = time.monotonic() + PATIENCE
    while not opened.execute_script("return isReady()"):
        if time.monotonic() > until:
            told = opened.execute_script("return document.getElementById('state').textContent")
            raise BadInputError(f"the page shows no images after {PATIENCE:.0f} s ({told}): look at it in a browser")
        time.sleep(0.1)


def main() -> None:
    parser = module_parser(__doc__, "out")
    parser.add_argument("--viewer", type=Path, help="as of `dpmtrain study page`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder, ("one", "two"), CONTRASTS, SHAPE)
        made = argparse.Namespace(
            standard=folder / "standard", accelerated=folder / "accelerated", out=folder / "study",
            key=folder / "key.json", seed="a", readers=2, repeats=0, margin=0.5, deviation=0.7, expected=0.0,
        )  # fmt: skip
        make(made)
        page(made.out, args.viewer)
        with browser(folder) as opened:
            opened.get((made.out / "index.html").as_uri())
            begin(opened, 1)
            press(opened, "4", "3", "5")
            steps = [opened.execute_script(f"return timedStep({1 if n % 60 < 29 else -1})") for n in range(N_STEPS)]
            with writing(args.out / "page.png"):
                opened.save_screenshot(str(args.out / "page.png"))
    steps.sort()
    text = (
        f"A step through {SHAPE[0]} slices of {SHAPE[1]} x {SHAPE[2]} in {len(CONTRASTS)} contrasts, headless Chromium "
        f"of {SIZE[0]} x {SIZE[1]}, WebGL by the CPU (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores): median "
        f"{statistics.median(steps):.0f} ms, 90 % below {steps[N_STEPS * 9 // 10]:.0f} ms."
    )
    write_text(args.out / "page_time.md", text + "\n")
    print(text)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
