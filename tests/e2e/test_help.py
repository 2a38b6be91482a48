"""CONTRACT 6: the command line as its help, man pages and completions tell it."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.process import ROOT, binary
from harness.tls import Authority

COMMANDS = {
    # In the order of the help; what the contract gives each of them.
    "dev": ["--ca-file", "--ready-fd"],
    "gateway": ["-c", "--config", "--ready-fd"],
    "agent": ["-c", "--config", "--ready-fd"],
    "check": ["-c", "--config"],
    "key": ["new"],
    "agent-token": ["new"],
    "connect": ["--gateway", "--key", "--geo", "--agent", "-H", "--cookie", "--idle-timeout", "--ca-file", "--insecure", "--text", "--binary", "-x", "-w", "--no-color", "<URL>"],
    "echo": ["--listen", "--ready-fd"],
    "completions": ["bash", "zsh", "fish", "elvish", "powershell"],
    "man": ["--dir"],
}
SUBCOMMANDS = {"key new": ["--id", "--rate", "--burst", "--max-sessions", "--expires", "--file"], "agent-token new": ["--slug", "--country", "--file"]}


def ringway(*words: str, code: int = 0) -> str:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([binary(), *words], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, env=environment)
    assert done.returncode == code, (words, done)
    return done.stdout if code == 0 else done.stderr


def test_help_lists_every_command_in_order():
    """One binary, `ringway`: its commands, exit codes and environment"""
    text = ringway("--help")
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", text[text.index("Commands:") : text.index("Options:")], re.M)
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS), listed
    signals = text[text.index("Signals") : text.index("Exit codes")].splitlines()[1:]
    assert all(re.match(r"  SIG|  {20}|$", line) for line in signals), f"a line is broken on a narrow terminal: {signals}"
    for word in ("Exit codes: 0", "RINGWAY_LOG", "RINGWAY_LOG_FORMAT", "RINGWAY_KEY", "ringway dev"):
        assert word in text, word


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_help_of_a_command(command):
    """`--help` of every command has every option of the contract, each with a text"""
    text = ringway(*command.split(), "--help")
    for option in {**COMMANDS, **SUBCOMMANDS}[command]:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{option} is not in:\n{text}"
    for option in re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", text, re.M):
        assert re.search(rf"{option}(?: <[^>]+>)?(?:  +|\n +)\S", text), f"{option} has no text:\n{text}"


def test_connect_help_has_examples():
    """examples in `ringway connect --help`, each on lines that fit a narrow terminal"""
    text = ringway("connect", "--help")
    examples = text[text.index("Examples:") :].splitlines()
    assert sum("ringway connect" in line for line in examples) >= 4, text
    assert all(len(line) < 80 for line in examples), examples
    assert "Exit codes: 0 after Close 1000" in text


def test_examples_are_commands_that_parse():
    """What the help shows can be pasted: nothing in it is an unknown option"""
    text = ringway("connect", "--help")
    examples = text[text.index("Examples:") : text.index("Exit codes:")].replace("\\\n", " ")
    shown = re.findall(r"ringway connect .*", examples)
    assert len(shown) >= 4
    for line in shown:
        # Without a key it is refused, once the rest has been understood.
        done = subprocess.run(["sh", "-c", line.replace("ringway", f"'{binary()}'", 1)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        assert done.returncode == 2 and "no API key" in done.stderr, (line, done)


# --- what the documents show -------------------------------------------------------------------------------------------------
README, CONFIGURATION = ROOT / "README.md", ROOT / "docs" / "configuration.md"


def blocks(document: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.M | re.S)
    return [text for of, text in found if of == language]


def test_configuration_that_is_shown_is_right(tmp_path):
    """The files as README and docs have them pass `ringway check`: each block, and README's together"""
    identity = Authority(tmp_path).identity("localhost").read_bytes()
    for name, content in (("cert.pem", identity), ("key.pem", identity), ("keys.toml", b""), ("agents.toml", b""), ("agent.token", b"token"), ("private-ca.pem", identity)):
        (tmp_path / name).write_bytes(content)
    of_gateway = [text for text in blocks(README, "toml") if "gateways = " not in text]
    shown = [*blocks(README, "toml"), "\n".join(of_gateway), *blocks(CONFIGURATION, "toml")]
    assert len(shown) >= 6
    for text in shown:
        kinds = {"[[key]]": "keys.toml", "[[agent]]": "agents.toml", "gateways = ": "agent.toml"}
        file = tmp_path / next((name for mark, name in kinds.items() if mark in text), "gateway.toml")
        file.write_text(text)
        assert f"{file}: ok" in ringway("check", "-c", str(file)), text


def test_commands_that_are_shown_are_known():
    """README's lines can be pasted: no command or option in them is unknown"""
    lines = re.findall(r"(?:^|\| )(ringway [^\n|>]+)", "".join(blocks(README, "")), re.M)
    assert len(lines) >= 6, lines
    for line in lines:
        assert "Usage" in ringway(*line.split()[1:], "--help"), line


def test_usage_errors():
    """2 usage or configuration; a misspelt command or option is told what was meant"""
    assert "connect" in ringway("conect", code=2)
    assert "--gateway" in ringway("connect", "--gatewy", "ws://g", code=2)
    assert "Usage" in ringway(code=2)


def test_man_page():
    """`ringway man`: a page that names every command"""
    page = ringway("man")
    assert page.startswith(".") and ".SH NAME" in page
    for command in COMMANDS:
        name = command.replace("-", "\\-")
        assert f"ringway\\-{name}(1)" in page, command


def test_man_pages(tmp_path):
    """`ringway man --dir DIR`: a page for every command, with its options"""
    folder = tmp_path / "share" / "man1"
    assert ringway("man", "--dir", str(folder)) == ""
    pages = {file.name for file in folder.iterdir()}
    assert {"ringway.1", "ringway-key-new.1", *(f"ringway-{command}.1" for command in COMMANDS)} <= pages, pages
    assert not [name for name in pages if "help" in name], "help is no command that anybody looks up"
    text = (folder / "ringway-connect.1").read_text()
    for option in ("gateway", "header", "key\\-file", "idle\\-timeout"):
        assert f"\\-\\-{option}" in text, option
    assert "RINGWAY_KEY" in text and "Examples" in text


def test_man_pages_that_cannot_be_written(tmp_path):
    """1 failed while running, and the folder is named"""
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in ringway("man", "--dir", str(file / "man1"), code=1)


def test_man_pages_are_readable(tmp_path):
    """man(1) shows them without a complaint"""
    mandoc = shutil.which("mandoc") or shutil.which("groff")
    if not mandoc:
        pytest.skip("neither mandoc nor groff is installed")
    ringway("man", "--dir", str(tmp_path))
    for page in tmp_path.iterdir():
        words = [mandoc, "-T", "ascii", str(page)] if "mandoc" in mandoc else [mandoc, "-man", "-T", "ascii", "-ww", str(page)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and not done.stderr, (page.name, done.stderr[:500])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "elvish", "powershell"])
def test_completions(shell):
    """`ringway completions SHELL`: every command and its options"""
    script = ringway("completions", shell)
    for command, options in COMMANDS.items():
        assert re.search(rf"\b{command}\b", script), command
        for option in options:
            if option.startswith("--"):
                assert option in script or f"-l {option[2:]}" in script, (command, option)
    found = shutil.which(shell if shell != "powershell" else "pwsh")
    if found and shell in ("bash", "zsh", "fish"):
        subprocess.run([found, "-n" if shell != "fish" else "--no-execute", "/dev/stdin"], input=script, text=True, check=True, timeout=30)


def test_completions_complete_in_bash(tmp_path):
    """A real bash completes with it"""
    script = tmp_path / "ringway.bash"
    script.write_text(ringway("completions", "bash"))
    ask = f"""
    source {script}
    COMP_WORDS=(ringway connect --ga) COMP_CWORD=2
    _ringway ringway --ga connect
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["--gateway"], done


def test_completions_of_an_unknown_shell():
    """2 usage"""
    assert "possible values" in ringway("completions", "csh", code=2)
