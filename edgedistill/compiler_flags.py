"""Says which programs a target may name as its compilers, and which flags they may get.

A target is a TOML file, and people pass these files on. A flag of a compiler can do more than tune: it can start
another program, load a plugin, read more flags or a source from a file, or take the compiler's own parts from a folder.
Only the forms listed here are therefore taken. None of them names a file, and none takes the next word as its value.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from edgedistill.errors import ConfigError

PROGRAM = r"(?:[\w.+]+-)*{}(?:-?\d[\d.]*)?"  # a prefix such as aarch64-linux-gnu-, and a version such as -12
C_COMPILER = re.compile(PROGRAM.format("(?:gcc|clang|cc)"))
NVCC = re.compile(PROGRAM.format("nvcc"))
PACKAGES = re.compile(r"[a-z0-9][a-z0-9+.:-]*(?: [a-z0-9][a-z0-9+.:-]*)*")  # of Debian, for `apt install`

STRANGERS = "take no target file from a stranger: like a script, it can name programs, which then run"

WORD = r"[A-Za-z0-9][\w.+-]*"
CODE_GENERATION = (  # names of -f flags that change how fast or how large the code is
    *("align-functions", "align-jumps", "align-labels", "align-loops", "common", "data-sections"),
    *("function-sections", "gcse", "inline-functions", "inline-limit", "ivopts", "modulo-sched"),
    *("omit-frame-pointer", "peel-loops", "pic", "PIC", "pie", "PIE", "plt", "prefetch-loop-arrays"),
    *("rename-registers", "schedule-insns", "schedule-insns2", "short-enums", "signed-char", "split-loops"),
    *("stack-protector", "stack-protector-all", "stack-protector-strong", "strict-aliasing", "tree-vectorize"),
    *("unroll-all-loops", "unroll-loops", "unsigned-char", "unswitch-loops", "vect-cost-model", "web"),
)
C_FORMS = (
    r"-O[0-3sgz]?",
    r"-g[0-3]?",
    r"-pipe",
    rf"-m(?!llvm){WORD}(?:=[\w.+-]+)?",  # the chip; -mllvm is Clang's way to its internals
    rf"-f(?:no-)?(?:{'|'.join(CODE_GENERATION)})(?:=[\w.+-]+)?",
    rf"-W(?:no-)?{WORD}(?:=[\w.+-]+)?",  # warnings; -Wl, -Wa and -Wp have commas
    r"-w",
)
NVCC_FORMS = (
    r"-{1,2}(?:lineinfo|generate-line-info|restrict|extra-device-vectorization|resource-usage|Werror|w)",
    r"-{1,2}(?:maxrregcount|split-compile|threads|diag-suppress|std)=[\w.,+]+",
    r"-O[1-3]",
)


def require_program(key: str, name: str, form: re.Pattern[str], expected: str) -> None:
    """Raises ConfigError unless `name` names a compiler on the PATH, or by its whole path."""
    path = PurePath(name)
    if not form.fullmatch(path.name) or not (path.is_absolute() or path.name == name):
        raise ConfigError(f"'{key}' names no compiler", got=repr(name), expected=expected, next_step=STRANGERS)


def require_flags(flags: tuple[str, ...], forms: tuple[str, ...], example: str) -> None:
    """Raises ConfigError for the first flag that has none of the forms."""
    for flag in flags:
        if not any(re.fullmatch(form, flag, re.ASCII) for form in forms):
            raise ConfigError(
                f"the flag {flag!r} is refused: only flags that name no file and start no program are taken",
                expected=example,
                next_step="a script of your own whose name ends in -gcc may add other flags: name it as `command`. "
                f"But {STRANGERS}",
            )


def require_packages(packages: str) -> None:
    """Raises ConfigError unless the text is names of Debian packages, which an error shows as a command to type."""
    if not PACKAGES.fullmatch(packages):
        raise ConfigError("'debian_package' is no name of a package", got=repr(packages), expected="such as gcc-12")
