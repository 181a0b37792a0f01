"""The console command: ``tpssl-hf COMMAND [--num_processes N] [--KEY VALUE ...]``.

It imports neither torch nor accelerate before it has set the process up, and starts several processes through
accelerate's own launcher.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tpssl_hf import __version__
from tpssl_hf.errors import InputError
from tpssl_hf.process import prepare_process, run_cli, values_of

COMMANDS = {  # name -> (module of tpssl_hf.commands, what it does)
    "pretrain": ("pretrain", "adapt a backbone to your own images, without labels"),
    "classify": ("classify", "finetune a classifier with few labels"),
    "segment": ("segment", "finetune a segmenter with few masks"),
    "watch": ("watch", "look at a run while it runs"),
    "predict": ("predict", "label images, or draw their masks, with a finished model"),
    "review": ("review", "look at predictions in a browser, and correct them"),
    "embed": ("embed", "write the features of images"),
    "verdict": ("verdict", "did adapting help? Paired differences with intervals"),
    "pick-labels": ("pick_labels", "choose the images that are worth labeling first"),
    "analyze": ("analyze", "look into features and finished runs"),
    "reproduce": ("reproduce", "run a table of the paper"),
    "convert": ("convert", "make weights of other sources loadable"),
    "publish": ("publish", "push a finished run to the Hub with a model card"),
    "demo": ("demo", "start the demo in a browser"),
    "doctor": ("doctor", "versions, device, threads, disk, login: what a bug report needs"),
}
SEVERAL = ("pretrain", "classify", "segment")  # what can be run by several processes
PROCESSES = "--num_processes"
HELP = Path(__file__).parent / "commands" / "help"  # written by tests/help_texts.py


def main() -> None:
    """Run the command line of this process and end it with an exit code."""
    run_cli(lambda: run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line without the program's name; returns the exit code.

    Raises:
        InputError: for an unknown command, or a number of processes it cannot have.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"{__version__}\n")
        return 0
    command, rest = arguments[0], list(arguments[1:])
    if command not in COMMANDS:
        raise InputError(f"{command!r} is not a command; there are {', '.join(COMMANDS)}.")
    if rest in (["--help"], ["-h"]) and (text := HELP / f"{command}.txt").is_file():
        sys.stdout.write(text.read_text(encoding="utf-8"))
        return 0
    processes, rest = without_processes(command, rest)
    if processes > 1:
        return launch(processes, [command, *rest])
    prepare_process(rest)
    code: int = importlib.import_module(f"tpssl_hf.commands.{COMMANDS[command][0]}").main(rest)
    return code


def overview() -> str:
    """Return what ``tpssl-hf --help`` says."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: tpssl-hf COMMAND [--KEY VALUE ...]",
            "",
            *(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()),
            "",
            "`tpssl-hf COMMAND --help` lists the keys of a command. `--num_processes N` starts pretrain, classify and",
            "segment in N processes on this machine; for several machines: accelerate launch recipes/...",
            "",
        ]
    )


def without_processes(command: str, arguments: list[str]) -> tuple[int, list[str]]:
    """Return the number of processes asked for, 1 when not given, and the other arguments."""
    given = values_of(PROCESSES, arguments)
    if not given:
        return 1, arguments
    if not given[-1].isdecimal() or int(given[-1]) < 1:
        raise InputError(f"{PROCESSES} {given[-1]} is not a whole number above 0; give one.")
    if command not in SEVERAL and int(given[-1]) > 1:
        raise InputError(f"{command} runs in one process; {', '.join(SEVERAL)} can have several.")
    rest, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(f"{PROCESSES}=") and argument != PROCESSES:
            rest.append(argument)
        skip = argument == PROCESSES
    return int(given[-1]), rest


def launch(processes: int, arguments: list[str]) -> int:
    """Run a command line in several processes of this machine; returns the exit code of the first that failed."""
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise InputError(f"{PROCESSES} {processes}, but there are {torch.cuda.device_count()} GPUs; give as many.")
    # This type is what makes accelerate start several, on CPUs as well; with --cpu it starts one.
    flags = ["--multi_gpu", PROCESSES, str(processes), "--num_machines", "1", "--main_process_port", "0"]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--module"]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # our own sentence is enough
    try:
        launch_command(launch_command_parser().parse_args([*flags, "tpssl_hf.cli", *arguments]))
    except ChildFailedError as error:
        return next(iter(error.failures.values())).exitcode
    return 0


if __name__ == "__main__":
    main()
