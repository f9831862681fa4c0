"""What all experiment modules share on the command line: flags, one-line errors, exit status."""

import difflib
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from jaxprefit.errors import UserError, out_of_memory
from jaxprefit.runtime.allocator import keep_freed_memory
from jaxprefit.runtime.distributed import leave
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.preemption import Preempted, end_at_once
from jaxprefit.runtime.terminal import printable

USER_ERROR_STATUS = 2
PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h, "try again": a scheduler may start the same command anew
_LESS_MEMORY = "take fewer data.*.rows, or data.tc.chunk_rows, run.accumulate or run.remat, which save memory"
_WORKDIR = "Folder for everything that is written; created, or continued."


def run(main: Callable[..., Any], doc: str, config: str = "", folder: str = "workdir", **extra: str) -> None:
    """Parses flags and calls main(config, workdir, **extra); a UserError becomes one line on stderr and status 2.

    So do SIGINT (status 130) and SIGTERM (status 75), after which the same command continues.

    `config` is the default config file, `folder` the flag that names the workdir; `extra` are names of further string
    flags with their help texts.
    """
    config_flag = config_flags.DEFINE_config_file(
        "config", config or None, "Config file, such as configs/minilm.py; any leaf: --config.optimizer.steps=100"
    )
    workdir = flags.DEFINE_string(folder, None, _WORKDIR)
    more = {name: flags.DEFINE_string(name, "", text) for name, text in extra.items()}

    def parse(argv: Sequence[str]) -> list[str]:
        if {"--help", "-h", "-help"} & set(argv):
            print(_help(doc, {folder: _WORKDIR, **extra}, _config_file(argv, config)))
            sys.exit(0)
        try:
            argv = [_at_home(argument) for argument in argv]
            sys.argv[:] = _with_fragments(argv, _leaves(_config_file(argv, config)))  # there the flag library looks too
            return flags.FLAGS(sys.argv)
        except SystemExit:
            raise
        except UserError as e:
            _fail(str(e))
        except Exception as e:  # the library's own exceptions, an error in the config file, a missing file
            _fail(_flag_error(e, sys.argv, _config_file(argv, config)))

    def call(argv: Sequence[str]) -> None:
        try:
            signal.signal(signal.SIGTERM, end_at_once)
            if len(argv) > 1:
                raise UserError(f"unexpected argument '{argv[1]}'; settings are written --config.key=value")
            try:
                settings = config_flag.value
            except Exception as e:  # the config file is missing or does not run; it is read only now
                raise UserError(_flag_error(e, sys.argv, _config_file(sys.argv, config))) from e
            if not isinstance(settings, ConfigDict):  # the library returns its error as a value that raises when used
                if config_flag.value is not None and flags.FLAGS["config"].present:
                    raise UserError(
                        f"--config={_config_file(sys.argv, config)} cannot be read; name a file of configs/"
                    )
                raise UserError("--config is missing; for example --config=configs/minilm.py")
            if not workdir.value:
                raise UserError(f"--{folder} is missing; for example --{folder}=runs/first")
            place = user_path(workdir.value)
            _keep_compiled(settings, place)
            main(settings, place, **{name: f.value for name, f in more.items()})
        except UserError as e:
            _fail(str(e))
        except OSError as e:  # no permission, no space, a folder where a file should be
            _fail(f"{e.filename or workdir.value}: {e.strerror or e}")
        except jax.errors.JaxRuntimeError as e:
            if not out_of_memory(e):
                raise
            first = " ".join(str(e).split())[:200]
            _fail(f"out of memory ({first}); {_LESS_MEMORY}")
        except Preempted as e:
            _fail(str(e), PREEMPTED_STATUS)
        except KeyboardInterrupt:
            _fail("interrupted; the same command continues from the last checkpoint", 130)

    keep_freed_memory()
    absl_logging.set_verbosity(absl_logging.ERROR)
    _show_text_and_log()
    sys.modules["__main__"].__doc__ = doc
    app.run(call, flags_parser=parse)


class _Printed(logging.Handler):
    """Prints the package's messages, such as what of a source was dropped, to standard output."""

    def emit(self, record: Any) -> None:
        print(printable(record.getMessage()))


def _show_text_and_log() -> None:
    """Lets the package's log be seen, and text in letters that the terminal cannot write be shown by their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log = logging.getLogger("jaxprefit")
    log.setLevel(logging.INFO)
    log.addHandler(_Printed())
    log.propagate = False


def _keep_compiled(settings: ConfigDict, workdir: pathlib.Path) -> None:
    """Lets the next process read what this one compiles, from a folder beside the data caches; a folder that
    JAX_COMPILATION_CACHE_DIR names goes before it."""
    named = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if named is not None:  # JAX itself can write to a bucket, but does not expand ~
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(named))
    elif settings.run.compilation_cache:
        cache = user_path(settings.data.cache) if settings.data.cache else workdir.parent / "cache"
        jax.config.update("jax_compilation_cache_dir", str((cache / "compiled").absolute()))


def _at_home(argument: str) -> str:
    """`argument` with ~ expanded where it is --config=FILE, of which the shell does not do it."""
    flag, equals, file = argument.partition("=")
    return f"{flag}={user_path(file)}" if equals and file and flag in ("--config", "-config") else argument


def _with_fragments(argv: Sequence[str], leaves: Mapping[str, Any]) -> list[str]:
    """`argv` with each --config.PART=@FILE, where PART is a group of settings, replaced by those in the JSON file.

    Settings after it on the line go before those of the file.
    """
    out: list[str] = []
    for argument in argv:
        part, _, file = argument.lstrip("-").removeprefix("config.").partition("=@")
        group = argument.startswith("--config.") and any(key.startswith(f"{part}.") for key in leaves)
        if not (group and file):
            out.append(argument)
            continue
        try:
            content = json.loads(user_path(file).read_text(encoding="utf-8"))
            settings = flatten_dict(content, sep=".")
        except OSError as e:
            raise UserError(f"{argument}: {file} cannot be read ({e.strerror}); name a JSON file of settings") from None
        except (ValueError, AssertionError, AttributeError, RecursionError):
            raise UserError(f'{argument}: {file} is no JSON object of settings, such as {{"rank": 8}}') from None
        for key, value in settings.items():
            out.append(f"--config.{part}.{key}={tuple(value) if isinstance(value, list) else value}")
    return out


def _help(doc: str, options: Mapping[str, str], file: str) -> str:
    """The module's docstring, its flags, and every setting with its value in the config file."""
    lines = [doc.strip(), "", "flags:", "  --config=FILE  such as configs/minilm.py"]
    lines += [f"  --{name}=...  {text}" for name, text in options.items()]
    lines += ["", "settings, with the config file's values (configs/default.py says what they mean):"]
    lines += [f"  --config.{key}={value}" for key, value in _leaves(file).items()]
    return "\n".join(lines)


def _flag_error(e: Exception, argv: Sequence[str], file: str) -> str:
    """One line for what the flag library says; a near match where a --config.KEY is no setting of the config."""
    known = _leaves(file)
    for flag in (a.lstrip("-").split("=")[0] for a in argv if a.startswith("--config.")):
        key = flag.removeprefix("config.")
        if known and key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean --config.{near[0]}?" if near else "see configs/default.py for all of them"
            return f"--{flag} is not a setting; {hint}"
    return " ".join(str(e).split())[:400]


def _config_file(argv: Sequence[str], default: str) -> str:
    """The config file named in `argv`, else the module's own, else the one of defaults."""
    names = [a.split("=", 1)[1] for a in argv if a.startswith(("--config=", "-config="))]
    names += [b for a, b in itertools.pairwise(argv) if a in ("--config", "-config")]
    return names[-1] if names else default or "configs/default.py"


def _leaves(file: str) -> dict[str, Any]:
    """Dotted name -> value for all leaves of a config file; {} where it cannot be read."""
    try:
        spec = importlib.util.spec_from_file_location("_config", file)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return flatten_dict(module.get_config().to_dict(), sep=".")
    except Exception:  # whatever a config file may raise; the flag library reports it better
        return {}


def _fail(message: str, status: int = USER_ERROR_STATUS) -> NoReturn:
    print(f"error: {printable(message)}", file=sys.stderr)
    leave(status, interrupted=status != USER_ERROR_STATUS)
