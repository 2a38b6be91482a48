//! A contender as a process: started with its files, looked at, ended by its id.
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};

use super::config::{Contender, Form};
use crate::{
    engine::pin,
    process::{self, Sample},
};

/// How long it may take until it accepts connections.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end when told to.
const STOP: Duration = Duration::from_secs(3);

/// What placeholders stand for.
#[derive(Clone, Debug)]
pub struct Values {
    pub port: u16,
    /// For a second process of the same contender.
    pub port2: u16,
    pub echo_port: u16,
    pub dir: PathBuf,
    pub bin: PathBuf,
    pub ringway: PathBuf,
    pub key_sha256: String,
}

impl Values {
    /// Such as a report shows: nothing of the machine it was made on.
    pub fn example(&self) -> Self {
        let (dir, bin, ringway) = ("DIR".into(), "BIN".into(), "ringway".into());
        Self { port: 8000, port2: 8001, echo_port: 9000, dir, bin, ringway, key_sha256: self.key_sha256.clone() }
    }

    /// What a program said, with the folders of this machine replaced by what stands for them in a report.
    pub fn hide(&self, text: &str) -> String {
        let example = self.example();
        let mut text = text.to_owned();
        for (own, shown) in [(&self.ringway, &example.ringway), (&self.dir, &example.dir), (&self.bin, &example.bin)] {
            // A bare name hides nothing, and may be part of other words.
            if own.is_absolute() {
                text = text.replace(&*own.to_string_lossy(), &shown.to_string_lossy());
            }
        }
        text
    }

    pub fn fill(&self, text: &str) -> String {
        text.replace("@port@", &self.port.to_string())
            .replace("@port2@", &self.port2.to_string())
            .replace("@echo_port@", &self.echo_port.to_string())
            .replace("@dir@", &self.dir.to_string_lossy())
            .replace("@bin@", &self.bin.to_string_lossy())
            .replace("@ringway@", &self.ringway.to_string_lossy())
            .replace("@key_sha256@", &self.key_sha256)
    }
}

/// Finds a program: a path as it is, a name in PATH and where servers are installed.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Path::new(program).is_file().then(|| program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Why a contender cannot take part; `None` if it can.
pub fn missing(contender: &Contender, values: &Values) -> Option<String> {
    if contender.form == Form::Direct {
        return None;
    }
    let program = values.fill(&contender.program);
    if find(&program).is_none() {
        return Some(format!("{program} is not installed"));
    }
    contender.needs.iter().find(|file| !Path::new(file).exists()).map(|file| format!("{file} is not there"))
}

/// The first line that the program says about its version.
pub fn version(contender: &Contender, values: &Values) -> Option<String> {
    let program = find(&values.fill(&contender.program))?;
    let output = Command::new(program).args(&contender.version).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    // Some begin with the path that they were started from.
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let first = Path::new(first).file_name().map_or(first.into(), std::ffi::OsStr::to_string_lossy);
    Some(format!("{first} {}", rest.trim()).trim().to_owned())
}

/// A port that is free now.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Starts a process on a core. What it starts itself inherits that.
///
/// # Errors
/// It cannot be started, or not there.
pub fn spawn_on(core: Option<usize>, command: &mut Command) -> anyhow::Result<Child> {
    // A child gets the affinity of the thread that makes it, so one of its own makes it.
    thread::scope(|scope| {
        let spawned = scope.spawn(|| {
            if let Some(core) = core {
                pin(core)?;
            }
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
        });
        spawned.join().map_err(|_| anyhow!("the thread that starts processes has panicked"))?
    })
}

/// What contenders with TLS present, made for this comparison.
pub struct Certificate {
    chain: String,
    key: String,
}

impl Certificate {
    /// # Errors
    /// It cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()])?;
        Ok(Self { chain: made.cert.pem(), key: made.signing_key.serialize_pem() })
    }

    /// As server.crt, server.key and server.pem (both).
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let both = format!("{}{}", self.chain, self.key);
        for (name, text) in [("server.crt", &self.chain), ("server.key", &self.key), ("server.pem", &both)] {
            fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        Ok(())
    }
}

/// A contender that runs.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Writes its files, starts it, and waits until it accepts connections.
    ///
    /// # Errors
    /// One of these fails; with what it said itself.
    pub fn start(
        contender: &Contender,
        values: &Values,
        certificate: &Certificate,
        core: Option<usize>,
    ) -> anyhow::Result<Self> {
        let _ = fs::remove_dir_all(&values.dir);
        fs::create_dir_all(&values.dir).with_context(|| format!("cannot make {}", values.dir.display()))?;
        for (name, text) in &contender.files {
            fs::write(values.dir.join(name), values.fill(text)).with_context(|| format!("cannot write {name}"))?;
        }
        if contender.tls || contender.target_tls {
            certificate.write(&values.dir)?;
        }
        let log = values.dir.join("output.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = values.fill(&contender.program);
        let program = find(&program).with_context(|| format!("{program} is not installed"))?;
        let mut command = Command::new(program);
        command.args(contender.command.iter().map(|argument| values.fill(argument)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A group of its own, so that whatever it starts can be ended with it.
        command.process_group(0);
        let mut running = Self { child: spawn_on(core, &mut command)?, log };
        running.wait_until_it_listens(values.port)?;
        if let Some(address) = &contender.ready {
            running.wait_until_it_is_ready(&values.fill(address))?;
        }
        Ok(running)
    }

    fn wait_until_it_listens(&mut self, port: u16) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                bail!("it ended at once ({status}): {}", self.said());
            }
            if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if started.elapsed() > START {
                bail!("it did not listen on {address} within {} s: {}", START.as_secs(), self.said());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_until_it_is_ready(&mut self, address: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while !answers_200(address).unwrap_or_default() {
            if let Some(status) = self.ended() {
                bail!("it ended before it was ready ({status}): {}", self.said());
            }
            if started.elapsed() > START {
                bail!("http://{address}/readyz was not 200 within {} s: {}", START.as_secs(), self.said());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of what it wrote.
    pub fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        if lines.is_empty() {
            "it said nothing".into()
        } else {
            lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
        }
    }

    /// # Errors
    /// It is gone.
    pub fn cpu_s(&self) -> anyhow::Result<f64> {
        process::cpu_s(self.child.id())
    }

    /// # Errors
    /// It is gone.
    pub fn sample(&self) -> anyhow::Result<Sample> {
        process::sample(self.child.id())
    }
}

fn answers_200(address: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

impl Drop for Running {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process_group};
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::TERM);
        let told = Instant::now();
        while self.ended().is_none() && told.elapsed() < STOP {
            thread::sleep(Duration::from_millis(5));
        }
        // Those that did not hear, and those that outlived their parent.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}
