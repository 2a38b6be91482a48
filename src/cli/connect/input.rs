//! What is to be sent: lines typed on a terminal, lines of a pipe, or messages from the command line.
//!
//! Reading waits, so it has a thread of its own, which hands messages over one at a time.
use std::{
    fs::File,
    io::{self, BufRead, Read, Write},
    os::fd::OwnedFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::{
    Config, DefaultEditor, ExternalPrinter,
    error::{ReadlineError, Signal},
};
use tokio::sync::{
    Notify,
    mpsc::{self, Receiver, Sender, error::TrySendError},
};

use super::{MAX_MESSAGE, screen::Screen};

/// Messages that may wait to be sent: of a pipe one, so that reading is as slow as sending; of somebody who types,
/// whom nobody can ask to wait, many.
const WAITING: usize = 1;
const WAITING_TYPED: usize = 1024;
const PROMPT: &str = "> ";
/// Milliseconds in which the rest of an escape sequence comes. A lone Escape would keep messages from being shown.
const KEY_SEQUENCE_MS: u16 = 100;
/// Up a line and down again: something for the editor to print that shows nothing.
const NOTHING: &str = "\x1b[1A\n";
const BRACKETED_PASTE_OFF: &[u8] = b"\x1b[?2004l";

/// Where messages come from.
#[derive(Debug)]
pub enum Source {
    Terminal,
    Pipe,
    Messages(Vec<String>),
}

/// The next message, or why there is none.
pub type Line = Result<Vec<u8>, String>;

/// Begins to read. On a terminal, Ctrl-C counts as an interrupt.
///
/// # Errors
/// A thread could not be started, or the terminal cannot be used.
pub fn start(
    source: Source,
    binary: bool,
    interrupted: &Arc<Notify>,
    screen: &Screen,
) -> io::Result<(Receiver<Line>, Option<Editing>)> {
    let (sender, receiver) = mpsc::channel(WAITING);
    match source {
        Source::Messages(messages) => {
            spawn(move || {
                for message in messages {
                    if sender.blocking_send(Ok(message.into_bytes())).is_err() {
                        return;
                    }
                }
            })?;
        }
        Source::Pipe => {
            spawn(move || read_lines(io::stdin().lock(), binary, &sender))?;
        }
        Source::Terminal => {
            let (sender, receiver) = mpsc::channel(WAITING_TYPED);
            let editing = Editing::start(sender, interrupted.clone(), screen)?;
            return Ok((receiver, Some(editing)));
        }
    }
    Ok((receiver, None))
}

fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("input".into()).spawn(run)
}

fn read_lines(mut input: impl BufRead, binary: bool, sender: &Sender<Line>) {
    loop {
        let line = read_line(&mut input, binary);
        let failed = line.is_err();
        let Some(line) = line.transpose() else { return };
        if sender.blocking_send(line).is_err() || failed {
            return;
        }
    }
}

/// The next line without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead, binary: bool) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    let limit = MAX_MESSAGE as u64 + 1;
    input.take(limit).read_until(b'\n', &mut line).map_err(|error| format!("standard input: {error}"))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if !binary && line.last() == Some(&b'\r') {
            line.pop();
        }
    } else if line.len() > MAX_MESSAGE {
        return Err(format!("standard input: a line is longer than {} MiB", MAX_MESSAGE >> 20));
    }
    if !binary && std::str::from_utf8(&line).is_err() {
        return Err("standard input: a line is not UTF-8; --binary sends it as it is".to_owned());
    }
    Ok(Some(line))
}

/// A terminal whose lines are being edited.
pub struct Editing {
    /// The editor's thread, where it can be ended.
    thread: Option<JoinHandle<()>>,
    /// The terminal, and how it was before.
    terminal: File,
    before: Termios,
}

impl Editing {
    fn start(sender: Sender<Line>, interrupted: Arc<Notify>, screen: &Screen) -> io::Result<Self> {
        let terminal: OwnedFd = rustix::io::dup(rustix::stdio::stdin())?;
        let before = tcgetattr(&terminal)?;
        let config = Config::builder().auto_add_history(true).keyseq_timeout(Some(KEY_SEQUENCE_MS)).build();
        let mut editor = DefaultEditor::with_config(config).map_err(io::Error::other)?;
        // A terminal that cannot move its cursor has no editor: its lines come whole, and messages go between them.
        let printer = editor.create_external_printer().ok();
        let ends = printer.is_some();
        screen.set_printer(printer.map(|printer| Box::new(printer) as Box<dyn ExternalPrinter>));
        let thread = spawn(move || edit(editor, &sender, &interrupted))?;
        Ok(Self { thread: ends.then_some(thread), terminal: terminal.into(), before })
    }

    /// Ends the editor, when all that was printed through it can be seen, and leaves the terminal as it was.
    pub fn finish(mut self, screen: &Screen) {
        let Some(thread) = self.thread else { return };
        // The editor takes one print at a time: when it has taken the second of these, what came before is shown.
        screen.print_through_editor(NOTHING);
        screen.print_through_editor(NOTHING);
        // It waits for a key. From now on its input is at its end, and the signal makes it look.
        let ended = File::open("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdin(&null)?)).is_ok();
        if ended {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::WINCH);
            let _ = thread.join();
        }
        screen.set_printer(None);
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
        let _ = self.terminal.write_all(BRACKETED_PASTE_OFF);
    }
}

fn edit(mut editor: DefaultEditor, sender: &Sender<Line>, interrupted: &Notify) {
    loop {
        match editor.readline(PROMPT) {
            Ok(line) => match sender.try_send(Ok(line.into_bytes())) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    let _ = writeln!(io::stdout(), "not sent: too much is waiting to be sent already");
                }
                Err(TrySendError::Closed(_)) => return,
            },
            Err(ReadlineError::Interrupted | ReadlineError::Signal(Signal::Interrupt)) => {
                interrupted.notify_one();
                return;
            }
            Err(ReadlineError::Signal(Signal::Resize)) => {}
            // The end of the input, or of the terminal.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], binary: bool) -> Vec<Result<Vec<u8>, String>> {
        let mut input = bytes;
        std::iter::from_fn(|| read_line(&mut input, binary).transpose()).collect()
    }

    #[test]
    fn lines_lose_their_ends_only() {
        assert_eq!(
            lines(b"a\n\nb\r\n\rc", false),
            [Ok(b"a".to_vec()), Ok(vec![]), Ok(b"b".to_vec()), Ok(b"\rc".to_vec())]
        );
        assert_eq!(lines(b"b\r\n\xff", true), [Ok(b"b\r".to_vec()), Ok(b"\xff".to_vec())]);
        assert_eq!(lines(b"", false), []);
        assert!(lines(b"\xff\n", false)[0].is_err());
    }

    #[test]
    fn a_line_may_be_as_long_as_a_message() {
        let mut line = vec![b'x'; MAX_MESSAGE];
        line.push(b'\n');
        assert_eq!(lines(&line, false)[0].as_ref().map(Vec::len), Ok(MAX_MESSAGE));
        line[MAX_MESSAGE] = b'x';
        let error = read_line(&mut &line[..], false).unwrap_err();
        assert!(error.contains("longer than 64 MiB"), "{error}");
    }
}
