"""What every command line shares: flags, the config, error messages and exit codes. Imports no jax.

Exit codes: 0 done, 1 failure (one line where the cause is known, such as a full disk, else a traceback), 2 bad flags,
config or data (one line that says what to do), 75 stopped by a signal, what is finished being saved: start me again.
"""

import contextlib
import logging
import signal
import sys
import traceback
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_prep.errors import Failure, InputError
from data_prep.visible import visible

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: schedulers requeue on it
HELP_FLAGS = {"help", "helpshort", "helpfull", "helpxml", "?"}


class Stopped(BaseException):
    """A signal ended the run after its state was saved; the message tells from where it will go on.

    Like KeyboardInterrupt no Exception: it may be raised anywhere, and nothing must take it for a failure of its own.
    """


def exit_code(error: BaseException) -> int:
    """What `run` ends the process with on `error`."""
    codes = {InputError: EXIT_BAD_INPUT, Stopped: EXIT_STOPPED}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), EXIT_FAILURE)


@contextlib.contextmanager
def stopped_by_signals(message: str):
    """SIGTERM and SIGUSR1 raise `Stopped(message)` at once: for commands whose finished parts are on disk.

    A second one does not interrupt the tidying up after the first.
    """

    def stop(number, frame):
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(message)

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in previous:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def define_config_flag() -> flags.FlagHolder:
    """Define `--config=FILE.py[:variant]`, with `--config.KEY=VALUE` to change single values; required."""
    if "config" in flags.FLAGS:  # of another command: one program may import several
        holder = flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])
    else:
        holder = config_flags.DEFINE_config_file(
            "config", None, "Configuration file, such as configs/smoke.py[:variant].", lock_config=True
        )
    flags.mark_flag_as_required("config")
    # List it in the --help of the command that asked for it, not of this module.
    caller = sys._getframe(1).f_globals["__name__"]
    module = sys.argv[0] if caller == "__main__" else caller
    flags.FLAGS.register_key_flag_for_module(module, flags.FLAGS["config"])
    return holder


def run(main) -> None:
    """Parse the flags, call `main()` and end the process with the right exit code.

    `main` takes no arguments and reads its flags; it raises `InputError` for what the user can mend. A
    `--help` is answered before anything is imported or started beyond what the module itself imports.
    """

    def guarded(_):
        absl_logging.get_absl_handler().addFilter(_shown)
        logging.getLogger("jax").setLevel(logging.WARNING)  # it tells of every kind of device that is absent
        try:
            main()
        except (InputError, Failure) as error:
            _fail(error, exit_code(error))
        except Stopped as stopped:
            print(f"stopped: {visible(stopped)}", file=sys.stderr)
            sys.exit(EXIT_STOPPED)

    app.run(guarded, flags_parser=_parse_flags)


def _shown(record: logging.LogRecord) -> bool:
    """Names and texts of telemetry reach the terminal as texts, not as commands to it."""
    record.msg, record.args = visible(record.getMessage()), ()
    return True


def _parse_flags(argv: list[str]) -> list[str]:
    """`FLAGS(argv)`, each failure as one line and exit code 2; help ends with 0 (absl's own parser: 1)."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            _ = flags.FLAGS.config.name  # a config that could not be read raises OSError only here
        return rest
    except SystemExit:  # a help flag has printed its text
        if {arg.lstrip("-").split("=")[0] for arg in argv[1:]} & HELP_FLAGS:
            sys.exit(0)
        raise
    except (InputError, flags.Error) as error:
        _fail(_describe_flag_error(str(error)))
    except OSError as error:
        _fail(f"{_config_path(argv)} cannot be read ({_reason(error)}); name a file such as configs/smoke.py")
    except Exception as error:
        _fail(_describe_config_error(argv, error))


def _fail(message, code: int = EXIT_BAD_INPUT) -> None:
    print("error: " + visible(" ".join(str(message).split())), file=sys.stderr)
    sys.exit(code)


def _config_path(argv: list[str]) -> str:
    """The file that `--config` names."""
    for i, arg in enumerate(argv[1:], 1):
        name, equals, value = arg.lstrip("-").partition("=")
        if name == "config" and arg.startswith("-"):
            value = value if equals else "".join(argv[i + 1 : i + 2])
            return value.split(":")[0]
    return "--config"


def _reason(error: OSError) -> str:
    """The system's words for the error that stopped the config file from being read."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return cause.strerror or "No such file or directory"


def _describe_flag_error(message: str) -> str:
    if "Error whilst parsing config file" in message:  # absl adds a whole traceback; its last line is the reason
        flag, _, trace = message.partition(": Error whilst")
        return f"{flag.removeprefix('flag ')} cannot be used: {trace.strip().splitlines()[-1]}"
    if "--config=None" in message:
        return "--config is missing; name a file such as --config=configs/smoke.py"
    if "config." in message and "before a value for --config" in message:
        return "--config=FILE must come before the --config.KEY=VALUE that change it"
    return message


def _describe_config_error(argv: list[str], error: Exception) -> str:
    path = Path(_config_path(argv))
    lines = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).name == path.name:
        return f"{path}, line {error.lineno}: {error.msg}"
    if lines:  # raised by the config file's own code
        return f"{path}, line {lines[-1].lineno}: {type(error).__name__}: {_plain(error)}"
    words = _plain(error)
    if isinstance(error, (KeyError, AttributeError)):
        key, _, hint = words.partition(" Did you mean ")
        override = next((a.split("=")[0] for a in argv if a.lstrip("-").startswith("config.") and key in a), key)
        near = hint.split()[0] if hint else ""
        return f"{override}: the configuration has no key {key!r}" + (f"; did you mean {near!r}?" if near else "")
    return f"the flags cannot be used: {type(error).__name__}: {words}"


def _plain(error: Exception) -> str:
    """The message without the quotes and escapes that ml_collections and KeyError put around it."""
    words = str(error).replace("\\n", " ").replace("\\'", "").replace("\\", "")
    return " ".join(words.replace("'", "").replace('"', "").split())
