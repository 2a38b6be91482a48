"""CONTRACT 6: agent.toml, agents.toml and `[agents]` as `ringway check` takes them, and `ringway agent-token new`."""
from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path

import pytest

from harness.process import binary, gateway_config, key_entry, sha256_hex, toml
from harness.tls import Authority

TOKEN = "rwa_hunter2hunter2hunter2"


def agent_config(**tables) -> dict:
    return {"slug": "de1", "country": "DE", "gateways": ["wss://gw1.example.com/agent", "ws://127.0.0.1:8080/agent"], "token_file": "agent.token", **tables}


def write(folder: Path, name: str, text: str, mode: int = 0o600) -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return file


async def check(world, file: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error. Started from another folder: paths count from the file's."""
    process = await world.process("check", "-c", str(file), ready=False, cwd="/")
    return await process.exit_code(), process.out, process.err


async def test_agent_file_with_what_it_names(world):
    """`ringway check -c FILE` validates any of the files: agent.toml with its token's file and `ca_file`"""
    folder = world.folder()
    write(folder, "agent.token", TOKEN + "\n")
    authority = Authority(folder)
    file = write(folder, "agent.toml", toml(agent_config(ca_file=str(authority.file), egress={"ca_file": str(authority.file)})))
    code, out, err = await check(world, file)
    assert (code, out, err) == (0, f'{file}: ok, "de1" for 2 gateways\n', "")


WRONG_AGENT = {
    "no token file": (agent_config(token_file="nowhere.token"), "nowhere.token: cannot be read"),
    "two lines": (agent_config(token_file="two.token"), "two.token: has more than one line"),
    "no roots": (agent_config(ca_file="agent.token"), "agent.token: holds no certificate"),
    "no roots for targets": (agent_config(egress={"ca_file": "nowhere.pem"}), "nowhere.pem: cannot be read"),
    "ws": (agent_config(gateways=["ws://gw1.example.com/agent"]), 'agent.toml:3: "gateways": ws:// to another machine is refused'),
    "no path": (agent_config(gateways=["wss://gw1.example.com"]), 'write "wss://relay.example.com/agent"'),
    "no gateway": (agent_config(gateways=[]), "agent.toml:3:"),
    "twice": (agent_config(gateways=["wss://gw/agent", "wss://gw:443/agent/"]), "in the list already"),
    "password": (agent_config(gateways=["wss://a:hunter2@gw/agent"]), "without user and password"),
    "misspelt": (agent_config(insecur=True), 'unknown key "insecur"; did you mean "insecure"?'),
    "proxy": (agent_config(egress={"proxy": "https://127.0.0.1:3128"}), '"proxy" in [egress]: must start with socks5://, socks5h:// or http://, not https://'),
    "foreign": (agent_config(limits={"header_timeout": "1s"}), 'unknown key "header_timeout" in [limits]'),
}


@pytest.mark.parametrize("name", WRONG_AGENT)
async def test_agent_file_that_is_refused(world, name):
    """exit 2, errors with line and what to write instead; no secret is repeated"""
    config, said = WRONG_AGENT[name]
    folder = world.folder()
    write(folder, "agent.token", TOKEN)
    write(folder, "two.token", f"{TOKEN}\n{TOKEN}\n")
    code, out, err = await check(world, write(folder, "agent.toml", toml(config)))
    assert code == 2 and out == "", (code, out)
    assert said in err and "hunter2" not in err and "panicked" not in err, err


async def test_everything_that_is_wrong_with_named_files_at_once(world):
    """errors of all the files that agent.toml names, together"""
    file = write(world.folder(), "agent.toml", toml(agent_config(ca_file="a.pem", egress={"ca_file": "b.pem"})))
    code, _, err = await check(world, file)
    assert code == 2 and [name in err for name in ("agent.token", "a.pem", "b.pem")] == [True] * 3, err


async def test_token_file_that_others_can_read(world):
    """a warning, and no error"""
    folder = world.folder()
    token = write(folder, "agent.token", TOKEN, mode=0o644)
    code, out, err = await check(world, write(folder, "agent.toml", toml(agent_config())))
    assert code == 0 and "ok" in out, (out, err)
    assert err.startswith(f"{token}: holds a secret and is open to others") and "(a warning: " in err and TOKEN not in err, err


AGENTS_WRONG = {
    "no slug": (f'[[agent]]\nsha256 = "{"0" * 64}"\n', 'agents.toml:1: [[agent]] needs "slug"'),
    "no sha256": ('[[agent]]\nslug = "de1"\n', 'agents.toml:1: [[agent]] needs "sha256"'),
    "the token itself": (f'[[agent]]\nslug = "de1"\nsha256 = "{TOKEN}"\n', "agents.toml:3:"),
    "country": (f'[[agent]]\nslug = "de1"\nsha256 = "{"0" * 64}"\ncountry = "Germany"\n', "agents.toml:4:"),
    "unknown": (f'[[agent]]\nslug = "de1"\nsha256 = "{"0" * 64}"\ntoken = "{TOKEN}"\n', 'agents.toml:4: unknown key "token"'),
    "one token twice": (f'[[agent]]\nslug = "de1"\nsha256 = "{"0" * 64}"\n' * 2, "agents.toml:6: \"sha256\" in [[agent]] is that of the [[agent]] in line 1 already"),
    "misspelt": (f'[[agents]]\nslug = "de1"\nsha256 = "{"0" * 64}"\n', "did you mean [[agent]]?"),
}


@pytest.mark.parametrize("name", AGENTS_WRONG)
async def test_agents_file_that_is_refused(world, name):
    """by itself, and where gateway.toml names it"""
    text, said = AGENTS_WRONG[name]
    folder = world.folder()
    agents = write(folder, "agents.toml", text)
    write(folder, "keys.toml", toml({"key": [key_entry()]}))
    gateway = write(folder, "gateway.toml", toml({**gateway_config(), "agents": {"tokens": "agents.toml"}}))
    for file in (agents, gateway):
        code, out, err = await check(world, file)
        assert code == 2 and out == "", (code, out)
        assert said in err and TOKEN not in err and "panicked" not in err, err


async def test_agents_files_that_are_right(world):
    """several tokens of one slug are no error; `[agents] tokens` is read with gateway.toml"""
    folder = world.folder()
    entry = {"slug": "de1", "sha256": sha256_hex(TOKEN), "country": "DE"}
    agents = write(folder, "agents.toml", toml({"agent": [entry, {"slug": "DE1", "sha256": sha256_hex("other")}]}))
    assert await check(world, agents) == (0, f"{agents}: ok, 2 agent tokens\n", "")
    write(folder, "keys.toml", toml({"key": [key_entry()]}))
    gateway = write(folder, "gateway.toml", toml({**gateway_config(), "agents": {"tokens": "agents.toml", "idle_channels": 64}}))
    assert await check(world, gateway) == (0, f"{gateway}: ok, with 1 key in {folder}/keys.toml and 2 agent tokens in {agents}\n", "")
    agents.unlink()
    code, _, err = await check(world, gateway)
    assert code == 2 and f"{agents}: cannot be read" in err, err


# --- ringway agent-token new -------------------------------------------------------------------------------------------------
async def new_token(world, *arguments: str, code: int = 0):
    process = await world.process("agent-token", "new", *arguments, ready=False)
    assert await process.exit_code() == code, process.err
    return process


async def test_tokens_are_appended(world):
    """`ringway agent-token new --slug de1 [--country DE] [--file agents.toml]` likewise: prints the token once; appends its SHA-256 only, mode 0600"""
    folder = world.folder()
    file = write(folder, "agents.toml", "# ours", mode=0o644)
    tokens = []
    for country in (["--country", "de"], []):
        process = await new_token(world, "--slug", "de1", *country, "--file", str(file))
        assert re.fullmatch(r"rwa_[\w-]{43}\n", process.out), process.out
        tokens.append(process.out.strip())
        assert tokens[-1] not in process.err and "only time" in process.err
    text = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    blocks = [f'[[agent]]\nslug = "de1"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n' for token in tokens]
    assert text == f'# ours\n\n{blocks[0]}country = "DE"\n\n{blocks[1]}'
    # What it prints is a token's file.
    write(folder, "agent.token", tokens[0] + "\n")
    assert (await check(world, write(folder, "agent.toml", toml(agent_config()))))[0] == 0
    assert (await check(world, file))[1] == f"{file}: ok, 2 agent tokens\n"


async def test_a_new_file_is_the_owners_alone(world):
    """`--file`: mode 0600 from its beginning"""
    file = world.folder() / "agents.toml"
    await new_token(world, "--slug", "de1", "--file", str(file))
    assert file.stat().st_mode & 0o777 == 0o600 and file.read_text().count("[[agent]]") == 1


async def test_a_token_without_a_file_is_printed_with_its_entry(world):
    """prints the block with its SHA-256 only"""
    token, nothing, *block = (await new_token(world, "--slug", "de1", "--country", "DE")).out.splitlines()
    assert nothing == "" and block == ["[[agent]]", 'slug = "de1"', f'sha256 = "{sha256_hex(token)}"', 'country = "DE"']


@pytest.mark.parametrize("text", ["[[agent]]\nslug = 5\n", "not TOML", "agent = []\n"])
async def test_a_broken_file_is_left_alone(world, text):
    """a file that is broken, or would be with the entry, gets nothing, and no token is shown"""
    file = write(world.folder(), "agents.toml", text)
    process = await new_token(world, "--slug", "de1", "--file", str(file), code=2)
    assert file.read_text() == text and process.out == "" and str(file) in process.err, process.err


@pytest.mark.parametrize("arguments", [[], ["--slug", "d e"], ["--slug", ""], ["--slug", "de1", "--country", "Germany"]])
async def test_usage(world, arguments):
    """exit 2 usage"""
    assert (await new_token(world, *arguments, code=2)).out == ""


async def test_a_token_that_cannot_be_shown_is_not_stored(world):
    """a token that nobody saw leaves no entry"""
    file = write(world.folder(), "agents.toml", "")
    with open("/dev/full", "w") as full:
        process = await asyncio.create_subprocess_exec(binary(), "agent-token", "new", "--slug", "de1", "--file", str(file), stdout=full, stderr=asyncio.subprocess.PIPE, env={**os.environ})
        _, said = await process.communicate()
    assert process.returncode == 1 and b"standard output" in said, said
    assert file.read_text() == ""
