"""Take the training package out of a setup.cfg: `python docker/without_training.py setup.cfg`. Images hold the runtime
alone; the wheel built from what is left asks for the same versions as the whole one."""

import configparser
import sys

TRAINING = "dpmtrain"


def main(path: str) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(path)
    for section, name in (
        ("options", "package_dir"),
        ("options", "packages"),
        ("options.entry_points", "console_scripts"),
    ):
        lines = config[section][name].splitlines()
        kept = [line for line in lines if not line.startswith(TRAINING)]
        if len(kept) == len(lines):
            sys.exit(f"{path} names no {TRAINING} under {name}: this script is out of date")
        config[section][name] = "\n".join(kept)
    with open(path, "w") as file:
        config.write(file)


if __name__ == "__main__":
    main(sys.argv[1])
